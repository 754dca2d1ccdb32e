// Fire the events of a turn in the hook runner of Gemini CLI, as its scheduler does, and print what it decides.
// Arguments: the package's folder, the settings file with the hooks, the command of the call, the folder.
import { readFileSync } from "node:fs";
import { join } from "node:path";

const [root, settings, command, cwd] = process.argv.slice(2);
const { HookRunner } = await import(join(root, "dist/src/hooks/hookRunner.js"));
const { HookAggregator } = await import(join(root, "dist/src/hooks/hookAggregator.js"));
console.log = console.debug = console.info = () => {};
const hooks = JSON.parse(readFileSync(settings, "utf8")).hooks;
const runner = new HookRunner({
  isTrustedFolder: () => true,
  sanitizationConfig: {
    allowedEnvironmentVariables: [], blockedEnvironmentVariables: [], enableEnvironmentVariableRedaction: false,
  },
  storage: { getPlansDir: () => "/tmp" },
});
const aggregator = new HookAggregator();

async function fire(event, members) {
  const input = {
    session_id: "runtime", transcript_path: "", cwd, hook_event_name: event,
    timestamp: new Date().toISOString(), ...members,
  };
  const configs = hooks[event].flatMap((group) => group.hooks);
  const results = await runner.executeHooksParallel(configs, event, input);
  return aggregator.aggregateResults(results, event).finalOutput;
}

const call = { tool_name: "run_shell_command", tool_input: { command } };
await fire("BeforeAgent", { prompt: "Look at the files." });
const output = await fire("BeforeTool", call);
const blocked = output?.isBlockingDecision?.() ?? false;
if (!blocked) await fire("AfterTool", { ...call, tool_response: { llmContent: "done" } });
process.stdout.write(JSON.stringify({ blocked, reason: blocked ? output.getEffectiveReason() : "" }) + "\n");
