"""What a page of HTML has: its tags, its text, and what it would fetch."""

from __future__ import annotations

from html.parser import HTMLParser

#: Attributes that make a browser ask for something.
_FETCHED = {"src", "href", "srcset", "data", "action", "xlink:href", "background"}


class PageParser(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        #: Text outside of every element that keeps a change of writing direction to itself.
        self.loose = ""
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("bdi", "text", "title"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        self.loose += "" if self._inside else data

    @property
    def references(self) -> list[dict[str, str | None]]:
        """The attributes of the elements that would fetch something."""
        return [attributes for _, attributes in self.tags if _FETCHED & set(attributes)]

    @property
    def security_policy(self) -> str | None:
        """The policy that the page states for itself."""
        stated = [a["content"] for _, a in self.tags if a.get("http-equiv") == "Content-Security-Policy"]
        return stated[0] if len(stated) == 1 else None
