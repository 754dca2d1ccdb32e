"""From settings to parts: the pack, the model, its adapter, its calibration, the journal.

Owns which settings each part gets. Invariant: what cannot be used is an error that names the setting or
the file, before anything decides. Called at a start, and by the pack manager's thread.
"""

from __future__ import annotations

import logging
import os
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from thor_policy import catalog
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import Adapter, ModelInfo, PackInfo
from thor_policy.core.engine import Engine
from thor_policy.core.enrichment import Mode
from thor_policy.core.errors import EngineError, PackError
from thor_policy.core.recall import Embedder, Weights
from thor_policy.core.records import Calibration
from thor_policy.daemon.alerts import Thresholds
from thor_policy.daemon.day_budget import DAY_NS
from thor_policy.daemon.enrichment import Plan
from thor_policy.daemon.model import load_engine as load_engine
from thor_policy.engine.absent import NoEngine
from thor_policy.engine.embedder import QUICK_FILE, MiniLM
from thor_policy.journal.checkpoints import Signer, key_path
from thor_policy.journal.reader import Reader
from thor_policy.journal.signing_rule import Checkpoints
from thor_policy.journal.writer import Journal, OnCommitted
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Pack
from thor_policy.policy.pack_files import PackFiles
from thor_policy.telemetry import clocks

log = logging.getLogger(__name__)

OpenJournal = Callable[[Config, OnCommitted], Journal]
OpenEmbedder = Callable[[Config], Embedder]


def load_embedder(config: Config) -> Embedder:
    """The quick sentence embedder, on two threads: a decision waits for it. Raises CatalogError."""
    return MiniLM(config.models_dir, QUICK_FILE, threads=2)


def weights_of(config: Config) -> Weights:
    """How much each merit of a precedent counts."""
    names = [each.name for each in structs.fields(Weights)]
    return Weights(**{name: getattr(config, f"similar_weight_{name}") for name in names})


def load_pack(config: Config) -> Pack:
    """The pack that the settings name. Raises PackError."""
    return pack_files.load(pack_files.find(config.pack, data_path("prompts")), config.pack_keys)


def read_pack(config: Config) -> PackFiles:
    """The files of that pack, for `pack_files.load_files`. Raises PackError if one of them is malformed."""
    files = PackFiles(pack_files.find(config.pack, data_path("prompts")))
    if files.findings:
        pack_files.load_files(files)
    return files


def open_engine(
    config: Config, *packs: Pack | PackFiles, load: Callable[[Config], Engine] | None = None
) -> tuple[Engine, Adapter | None]:
    """What these packs are judged by: the model of the settings and its adapter; no model for rules alone.

    `load` loads the model; default: `load_engine`. Raises CatalogError, ConfigError, EngineError.
    """
    if all(pack.rules_only for pack in packs):
        return NoEngine(), None
    log.info("loading the model %s ...", config.engine_url or config.model)
    engine = (load or load_engine)(config)
    try:
        return engine, adopt_adapter(config, engine)
    except BaseException:
        engine.close()
        raise


def adopt_adapter(config: Config, engine: Engine) -> Adapter | None:
    """Open the adapter of the settings in an engine, if they name one. Raises CatalogError, EngineError."""
    opened = find_adapter(config.adapter, config.adapter_scale, config, engine.model.name)
    if opened is None:
        return None
    opened.adopt(engine)
    return opened.adapter


def calibration_of(config: Config, pack: PackInfo, model: ModelInfo) -> Calibration | None:
    """The newest calibration of this pack on this model with its adapter, if there is one."""
    with Reader(config.journal_path) as reader:
        fields = reader.calibration(pack.sha256, model.identity)
    return Calibration(**fields) if fields else None


def enrichment_plan(config: Config) -> Plan:
    """What the settings say of enrichment."""
    return Plan(
        mode=typing.cast(Mode, config.enrichment),
        on=config.enrich_on,
        per_day=config.enrichments_per_day,
        s_per_day=config.enrichment_day_s,
        timeout_s=config.enrichment_timeout_s,
        quiet_s=config.enrichment_quiet_ms / 1e3,
        most_waiting=config.max_enrichments,
        masked=config.masked,
    )


def alert_thresholds(config: Config) -> Thresholds:
    """What the settings say of alerts."""
    return Thresholds(
        success_below=config.alert_success_below,
        least=config.alert_sample,
        window=max(config.alert_window, config.alert_sample),
        volume_sigma=config.alert_volume_sigma,
        bucket_s=config.alert_bucket_s,
        shipping_s=config.alert_shipping_s,
    )


def used_today(config: Config) -> list[tuple[int, int]]:
    """What enrichment used in the last 24 hours: (nanoseconds of the boot, nanoseconds of the device)."""
    with Reader(config.journal_path) as reader:
        return reader.enrichments_within(DAY_NS / 1e9, clocks.now())


def journal_options(config: Config) -> dict[str, Any]:
    """What the settings say of a journal, as arguments. Raises JournalError if the key cannot be used."""
    signer = Signer.load(key_path(config.checkpoint_key, os.environ))
    signer.publish(config.checkpoint_dir)
    return {
        "synchronous": config.synchronous,
        "min_free_mb": config.min_free_mb,
        "ballast_mb": config.ballast_mb,
        "masked": config.masked,
        "checkpoints": Checkpoints(
            signer, config.checkpoint_dir, config.checkpoint_events, config.checkpoint_s
        ),
    }


def open_journal(config: Config, on_committed: OnCommitted) -> Journal:
    """The journal of the state directory, open for writing."""
    return Journal(config.journal_path, on_committed=on_committed, **journal_options(config))


#: In place of a name: no shadow or no adapter; the adapter that the catalog lists for the model.
NONE, AUTO = "none", "auto"


@dataclass(frozen=True)
class OpenAdapter:
    """An adapter's file that may be loaded; `base` is the model it is for, where the catalog says so."""

    adapter: Adapter
    path: Path
    base: str | None

    def adopt(self, engine: Engine) -> None:
        """Open it in the engine. Raises EngineError if it is not for this model."""
        ours = engine.model.name
        if self.base is not None and self.base != ours:
            raise EngineError(f"the adapter {self.adapter.name} is for {self.base}, and the model is {ours}")
        engine.adopt(self.adapter, self.path, vouched=self.base is not None)


def find_adapter(name: str, scale: float, config: Config, model: str) -> OpenAdapter | None:
    """The adapter of that name or path; with `auto`, the adapter that the catalog lists for the model.

    None for an empty name or `none`, and where the catalog lists no adapter. Raises CatalogError.
    """
    if name == AUTO:
        name = "" if config.engine_url else catalog.companion_of(model) or ""
    if name in ("", NONE):
        return None
    file = catalog.resolve_adapter(name, config.models_dir)
    adapter = Adapter(name=file.name, sha256=file.sha256, scale=scale, rendering=file.rendering)
    return OpenAdapter(adapter, file.path, file.base)


def open_pack(name: str, trusted: Sequence[str] = ()) -> Pack:
    """The pack of that name or in that directory, if lint finds no error in it. Raises PackError.

    `trusted` names files with public keys; if there are any, one of these keys must have signed the pack.
    """
    pack = pack_files.load(pack_files.find(name, data_path("prompts")), trusted)
    errors = [finding for finding in lint_pack(pack) if finding.level == "error"]
    if errors:
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise PackError(f"{pack.path}/{errors[0]}{more}; see: thorpolicy packs lint {pack.path}")
    return pack
