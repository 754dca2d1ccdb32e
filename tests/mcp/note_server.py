"""A server of notes by the official SDK: one tool reads, one writes."""

from mcp.server.mcpserver import MCPServer

notes = {"a": "first"}
server = MCPServer("notes")


@server.tool()
def read_note(name: str) -> str:
    """The text of a note."""
    return notes[name]


@server.tool()
def write_note(name: str, text: str) -> str:
    """Write a note."""
    notes[name] = text
    return "written"


server.run("stdio")
