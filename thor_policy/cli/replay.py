"""`replay`: take recorded decisions again, and say whether they come out as they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing

import click
import msgspec

from thor_policy import catalog
from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.daemon import loading
from thor_policy.journal.reader import ENDING_CHARS, Reader
from thor_policy.learning.replay import Replayed, Replayer


@click.command()
@configured("state_dir", "pack", "model", "models_dir", "adapter", "adapter_scale")
@click.argument("decision_ids", nargs=-1, metavar="[ID]...", help="As `log` shows them; their ends will do.")
@click.option(
    "--random", "sample", metavar="N", type=click.IntRange(1), help="So many, drawn by chance (of --since)."
)
@click.option("--since", help="All from this RFC 3339 time on.")
@as_json
@click.pass_context
def replay(
    ctx: click.Context,
    config: Config,
    decision_ids: tuple[str, ...],
    sample: int | None,
    since: str | None,
    as_json: bool,
) -> None:
    """Take recorded decisions again, and compare rules, question, tokens, logits and outcome.

    Loads a model of its own beside a daemon's; writes nothing to the journal.

    \b
    Exit status: 0 identical (the same label, where a server is the model);
    1 something diverged; 2 something cannot be replayed, and why.
    """
    if bool(decision_ids) == bool(sample or since):
        raise click.UsageError("give decision ids, or --random N and --since TIME; not both")
    with Reader(config.journal_path) as reader:
        if decision_ids:
            ids = [reader.resolve(told) for told in decision_ids]
        else:
            ids = reader.decided_here(since=since, sample=sample)
        with closing(loading.load_engine(config)) as engine, render.progress(len(ids), "replayed") as advance:
            replayer = Replayer(
                reader,
                engine,
                loading.load_pack(config),
                adapter=loading.adopt_adapter(config, engine),
                text_of=_text_of(config),
            )
            done: list[Replayed] = []
            for decision_id in ids:
                done.append(replayer.replay(decision_id))
                advance()
        exact = engine.model.exact
    counts = Counter(one.verdict for one in done)
    if as_json:
        render.as_json({"counts": counts, "exact": exact, "decisions": msgspec.to_builtins(done)})
    else:
        for one in done:
            if one.verdict != "identical" or decision_ids:
                render.pairs(_told(one), title=f"{one.decision_id[-ENDING_CHARS:]}  {one.verdict}")
        render.line(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no decision")
    differing = counts["diverged"] + (counts["same_label"] if exact else 0)
    ctx.exit(1 if differing else 2 if counts["refused"] else 0)


def _told(one: Replayed) -> dict[str, object]:
    told = {
        name: value
        for name, value in msgspec.to_builtins(one).items()
        if value is not None and name not in ("decision_id", "verdict")
    }
    if one.step is not None:
        told |= {"recorded": one.recorded, "now": one.now}
    return told


def _text_of(config: Config) -> Callable[[Sequence[int]], str] | None:
    """The words behind token ids, from the model's file; loaded when they are asked for."""
    if config.engine_url:
        return None

    def text_of(tokens: Sequence[int]) -> str:
        from thor_policy.engine.native import Vocabulary

        vocabulary = Vocabulary(catalog.resolve(config.model, config.models_dir).path, vocab_only=True)
        with closing(vocabulary):
            return vocabulary.text_of(tokens, special=True)

    return text_of
