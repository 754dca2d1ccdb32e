"""Every setting, written once: its default, unit, help, and whether it is a command-line option.

Owns `Config` and the default paths. Invariant: a Config that exists is valid. Values come from the
defaults, then a TOML file, then `THOR_POLICY_*` variables, then flags; the last one wins. Read at start
(and on SIGHUP) on the main thread; a Config is frozen.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import platform
import re
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from platformdirs import user_data_path, user_state_path

from thor_policy.core import strict_toml
from thor_policy.core.enrichment import TRIGGERS
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Role

#: sockaddr_un holds 108 bytes with the terminating zero.
MAX_IPC_PATH_BYTES = 107
#: Prefixes that a JSON pointer of `masked` may have.
MASKABLE = ("/context/", "/subject/properties/", "/action/properties/", "/resource/properties/", "/sources/")
#: Added to the socket's path; gives the path of the socket that publishes events.
EVENTS_SUFFIX = ".events"
#: Added to the socket's path; gives the path of the socket that answers status and metrics.
CONTROL_SUFFIX = ".control"

#: Settings that a running daemon rereads on SIGHUP; any other needs a restart.
LIVE_SETTINGS = (
    *("caller_bytes_per_s", "caller_requests_per_s", "deadline_ms", "max_deadline_ms", "max_in_flight"),
    *("max_text_chars", "on_full", "roles", "count_from", "packs_for", "journal_quota_mb", "log_level"),
    *("people", "max_approvals", "approvals_per_caller", "approvals_per_subject"),
)
#: An entry of `packs_for`: a caller or a group of callers, and the packs they may name.
PACK_GRANT = re.compile(r"(local|(?:user|group|key):[^\s=:]+|(?:uid|gid):[0-9]{1,10})=(\S+)")
#: An entry of `sources`: the name of a source, what is set of it, and the value.
SOURCE_OVERRIDE = re.compile(r"([a-z][a-z0-9_]{0,63})\.(path|url|timeout_ms|key)=(.+)")
#: An entry of `people`: a caller, the name of the person, the roles, and the groups.
PERSON = re.compile(
    r"(user|uid|key|token|cert):([^\s=;]+)=([^\s=;+][^=;+]{0,254})(?:;([a-z0-9_-]+(?:\+[a-z0-9_-]+)*)?"
    r"(?:;([a-z0-9_-]+(?:\+[a-z0-9_-]+)*))?)?"
)
#: A name of a device in a fleet.
DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: In `packs_for`: any resident pack.
ANY_PACK = "*"
#: In `count_from`: the caller that a decision was made for, about its outcome.
OWN = "own"
#: An entry of `roles`: a caller or a group of callers, and the roles they have.
GRANT = re.compile(r"(local|(?:user|group):[^\s=:]+|(?:uid|gid):[0-9]{1,10})=([a-z+]+)")

#: Valid values of `engine_key`: a variable's name, or an absolute path. Few keys look like either.
_KEY_REFERENCE = re.compile(r"[A-Z_][A-Z0-9_]*|/.+")

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def in_checkout() -> bool:
    """True when the package runs from a source checkout, not from an installed wheel."""
    return not (_PACKAGE / "data").is_dir() and (_CHECKOUT / "pyproject.toml").is_file()


def data_path(name: Literal["prompts", "scenarios", "models"]) -> Path:
    """A directory that ships with the package: in the wheel, or at the top of the checkout."""
    return (_CHECKOUT if in_checkout() else _PACKAGE / "data") / name


def _default_state_dir() -> Path:
    return _CHECKOUT / "results" if in_checkout() else user_state_path("thor-policy")


def _default_models_dir() -> Path:
    return _CHECKOUT / "models" if in_checkout() else user_data_path("thor-policy") / "models"


def _setting(
    default: Any,
    help: str,
    *,
    flag: bool = False,
    metavar: str | None = None,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    meta = {
        "help": help,
        "flag": flag,
        "metavar": metavar,
        "least": least,
        "most": most,
        "choices": choices,
    }
    if callable(default):
        return field(default_factory=default, metadata=meta)
    return field(default=default, metadata=meta)


def _weight(default: float, counts: str) -> Any:
    """A setting: how much a merit of a precedent counts in its rank."""
    return _setting(default, f"Weight in the rank of a precedent: {counts}.", least=0, most=100)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a daemon and of the commands around it.

    Field names are the TOML keys; `THOR_POLICY_<NAME>` in upper case sets one from the environment.
    """

    state_dir: Path = _setting(
        _default_state_dir,
        "Directory of the journal and of the saved prefix states.",
        flag=True,
        metavar="DIR",
    )
    endpoint: str = _setting(
        "",
        "Address of the daemon's ipc socket: ipc:///path/to/socket. If empty: policy.sock in the runtime "
        "directory. A command reaches a daemon on another machine with tcp://HOST:PORT and `--key`.",
        flag=True,
        metavar="URL",
    )
    tcp_endpoint: str = _setting(
        "",
        "Address at which the daemon also accepts clients that hold a CURVE key: tcp://ADDRESS:PORT. If "
        "empty, it does not listen on tcp.",
        flag=True,
        metavar="URL",
    )
    key: str = _setting(
        "",
        "CURVE key that a command uses at a tcp endpoint: the name of a key in keys_dir, or the path "
        "(with a /) of a file that `thorpolicy keys new` made.",
        flag=True,
        metavar="NAME|FILE",
    )
    keys_dir: Path = _setting(
        Path, "Directory of the CURVE keys: the server's own key and the list of known clients."
    )
    roles: tuple[str, ...] = _setting(
        ("local=ask+record",),
        "Roles of the callers on the ipc socket, as WHO=ROLE+ROLE. WHO is local (anybody who may open the "
        "socket), user:NAME, group:NAME, uid:NUMBER or gid:NUMBER. The roles are ask, record, push, "
        "approve, review, test, ship, control and relay (sends requests of others, as `thorpolicy gateway` "
        "does, each with at most its own other roles). A caller has the roles of all entries that match. "
        "Root and the daemon's own user have every role. The roles of a key are set with `thorpolicy keys "
        "new`.",
    )
    count_from: tuple[str, ...] = _setting(
        ("review", OWN),
        "Whose statements count as true: roles, and own. Outcomes, reported decisions, exceptions and "
        "expected outcomes count in statistics, calibration, patterns and promotion only from callers with "
        "one of these roles. own: also the outcome of a decision that the caller itself asked for. Expected "
        "outcomes also count from callers with the role test. All other statements are recorded as claims.",
    )
    packs_for: tuple[str, ...] = _setting(
        (),
        "Packs that callers may name in a question, as WHO=PACK+PACK. WHO is as in roles, or key:NAME for a "
        "CURVE key. PACK is a name, name@version, the first 12 digits of its sha256 or more, or * (any). "
        "Everybody may name the active pack; callers with the role review or control any resident pack.",
    )
    people: tuple[str, ...] = _setting(
        (),
        "Who a caller is when it approves, as WHO=NAME;ROLE+ROLE;GROUP+GROUP. WHO is user:NAME, "
        "uid:NUMBER, key:NAME for a CURVE key, token:NAME or cert:NAME for a bearer token or a certificate "
        "whose requests a caller with the role relay sends. NAME is what questions call the person, such as "
        "kim. The roles and groups are those that the packs' approvals name; recorder may record consents "
        "that were given elsewhere. Callers of one NAME are one person.",
    )
    max_approvals: int = _setting(
        10_000, "Requests for approvals that may be open at once.", least=1, most=1_000_000
    )
    approvals_per_caller: int = _setting(
        1_000, "Requests for approvals of one caller that may be open at once.", least=1, most=1_000_000
    )
    approvals_per_subject: int = _setting(
        100, "Requests for approvals for one subject that may be open at once.", least=1, most=1_000_000
    )
    model: str = _setting(
        "smollm2-135m-instruct-q4_1",
        "Name of a model in the catalog, or path of a GGUF file.",
        flag=True,
        metavar="NAME|PATH",
    )
    models_dir: Path = _setting(
        _default_models_dir, "Directory of the model files.", flag=True, metavar="DIR"
    )
    pack: str = _setting(
        "team-governance",
        "Policy pack: a name under prompts/, or a directory.",
        flag=True,
        metavar="NAME|DIR",
    )

    pack_keys: tuple[str, ...] = _setting(
        (),
        "Files with Ed25519 public keys (PEM). If there are any, a pack is loaded only if one of these "
        "keys signed it (`thorpolicy packs sign`). If empty, unsigned packs are loaded.",
    )
    resident_packs: int = _setting(
        3,
        "Packs that may be resident at once. Each needs the memory of one stream; one more stream stays "
        "free for replacing a pack.",
        least=1,
        most=16,
    )
    max_shadows: int = _setting(
        256,
        "Requests that may wait for the shadow pack; it skips requests above this limit.",
        least=1,
        most=100_000,
    )
    adapter: str = _setting(
        "auto",
        "LoRA adapter for the model: a name in the model catalog, the path of a GGUF file, `auto` (the "
        "adapter that the catalog lists for the model, if there is one) or `none`.",
    )
    adapter_scale: float = _setting(
        1.0, "Factor by which the adapter's weights are multiplied.", least=0.01, most=10
    )

    sources: tuple[str, ...] = _setting(
        (),
        "Where this machine has the sources of the packs, as NAME.FIELD=VALUE: NAME.path of a table or a "
        "SQLite file, NAME.url and NAME.timeout_ms, and NAME.key, where the bearer key of an endpoint is "
        "kept (as engine_key). They are no part of a pack's sha256; each decision records the values that "
        "it used.",
    )
    source_hosts: tuple[str, ...] = _setting(
        (),
        "Hosts that HTTP sources may reach. If empty: those that their packs name.",
    )
    max_source_waiting: int = _setting(
        4_096,
        "Look-ups that may wait for one source. A caller may have as many as are free. Beyond that the "
        "source counts as failed for the request.",
        least=1,
        most=100_000,
    )
    max_pushed: int = _setting(
        10_000,
        "Entities whose values one caller may have pushed at a time.",
        least=1,
        most=10_000_000,
    )
    max_pushed_mb: int = _setting(
        16, "Size of all values that one caller may have pushed at a time, in MiB.", least=1, most=1_048_576
    )

    engine_url: str = _setting(
        "",
        "URL of a llama-server or vLLM that evaluates requests in place of the model in this process. It "
        "must be https, or http on loopback (an ssh tunnel). If empty, the model runs in "
        "this process.",
    )
    engine_key: str = _setting(
        "",
        "Where the bearer key for engine_url is kept: the name of an environment variable, or the "
        "absolute path of a file of mode 0600. Never the key itself. If empty, no key is sent.",
    )
    engine_model: str = _setting(
        "", "Model to use at engine_url. If empty, the only model that the server has."
    )
    engine_template: str = _setting(
        "",
        "Chat template of the model at engine_url. If empty, the template that the server reports.",
        choices=("", "chatml", "phi-4", "phi-4-mini"),
    )

    threads: int = _setting(0, "CPU threads of the engine. 0: one per usable core.", least=0, most=512)
    gpu_layers: int = _setting(
        -1, "Model layers kept on the GPU. -1: all, if the build supports a GPU.", least=-1, most=1000
    )
    flash_attention: str = _setting(
        "auto", "Flash attention. auto: where the device supports it.", choices=("auto", "on", "off")
    )
    kv_type: str = _setting(
        "f16", "Number format of the attention cache. q8_0 halves its memory.", choices=("f32", "f16", "q8_0")
    )
    context_tokens: int = _setting(
        2048,
        "Size of one stream, in tokens: prefix, question and explanation together.",
        least=256,
        most=131072,
    )
    max_question_tokens: int = _setting(
        512, "Longest question after rendering, in tokens. It is decoded in one call.", least=64, most=4096
    )
    parallel_explanations: int = _setting(
        4, "Explanations that share each decode. Each needs the memory of one stream.", least=1, most=64
    )

    max_explanations: int = _setting(
        64,
        "Explanations that may run or wait. A decision above this limit gets no explanation.",
        least=1,
        most=100_000,
    )

    contextual_calibration: str = _setting(
        "on",
        "Correct the confidence of decisions by what the model says to questions without content "
        "(contextual calibration), for a pack and model that no calibration was fitted for. Not with an "
        "adapter, which was trained. It never changes the model's label.",
        choices=("on", "off"),
    )

    cache_size: int = _setting(
        10_000, "Scores kept for questions that may be asked again. 0: no cache.", least=0, most=10_000_000
    )
    cache_ttl_s: float = _setting(
        3_600.0, "Seconds for which a cached score may be used again.", least=0, most=31_536_000
    )

    enrichment: str = _setting(
        "never",
        "Which decisions the model writes about on idle time: never, hybrid (those with a trigger of "
        "enrich_on, and those whose caller wants it) or always. It needs the memory of one stream.",
        choices=("never", "hybrid", "always"),
    )
    enrich_on: tuple[str, ...] = _setting(
        TRIGGERS,
        "What makes a decision one to enrich: exception, approval and synthesis (its type), low_confidence, "
        "disagreement (of the rules that matched and the model).",
    )
    enrichments_per_day: int = _setting(
        200,
        "Enrichments that may begin in a day, 24 hours of the machine's own clock. 0: none.",
        least=0,
        most=10_000_000,
    )
    enrichment_day_s: float = _setting(
        3_600.0, "Seconds of the device that enrichment may use in a day. 0: none.", least=0, most=86_400
    )
    enrichment_timeout_s: float = _setting(
        60.0,
        "Seconds that one enrichment may take from its beginning, decisions in between included.",
        least=0.1,
        most=86_400,
    )
    enrichment_quiet_ms: int = _setting(
        250,
        "Milliseconds without a decision before enrichment begins or goes on.",
        least=0,
        most=3_600_000,
    )
    max_enrichments: int = _setting(
        256,
        "Decisions that may wait to be enriched. Above this limit a decision is not.",
        least=1,
        most=100_000,
    )

    drift_every_s: float = _setting(
        900.0,
        "Seconds between two replays of the pack's examples by an idle daemon. Each score is compared "
        "with the example's earlier score. 0: never.",
        least=0,
        most=31_536_000,
    )
    drift_tolerance: float = _setting(
        0.01,
        "Largest change of a logit of a replayed example that does not count as drift.",
        least=0,
        most=100,
    )

    alert_success_below: float = _setting(
        0.5,
        "Share of successful outcomes below which there is an alert of an agent or a model, if even the "
        "upper end of the 95 % interval is below. 0: no such alert.",
        least=0,
        most=1,
    )
    alert_sample: int = _setting(
        30,
        "Least number of outcomes for an alert of a success rate, and of decisions for one of the volume.",
        least=1,
        most=1_000_000,
    )
    alert_window: int = _setting(
        200, "Newest outcomes of each agent and model that count for its alert.", least=1, most=100_000
    )
    alert_volume_sigma: float = _setting(
        6.0,
        "Deviations from the usual number of decisions in alert_bucket_s from which there is an alert. 0: no "
        "such alert.",
        least=0,
        most=1_000,
    )
    alert_bucket_s: float = _setting(
        300.0,
        "Seconds whose number of decisions is compared with those before; the last 48 make up what is usual.",
        least=1,
        most=86_400,
    )

    deadline_ms: int = _setting(
        10_000, "Deadline of a request that does not set one, in milliseconds.", least=1, most=600_000
    )
    max_deadline_ms: int = _setting(
        120_000, "Longest deadline that a request may set, in milliseconds.", least=1, most=600_000
    )
    max_in_flight: int = _setting(
        4_096,
        "Requests that may be admitted and unanswered. A caller (a user, or a key) may have as many as are "
        "free, so at most half of them; one connection at most half of its caller's. Further requests get "
        "`busy`.",
        least=1,
        most=1_000_000,
    )
    caller_requests_per_s: int = _setting(
        5_000,
        "Requests that a caller (a user, or a key) may send in a second, each evaluation of a batch counted. "
        "Further requests get `busy` with the time to wait. 0: any number.",
        least=0,
        most=10_000_000,
    )
    caller_bytes_per_s: int = _setting(
        67_108_864,
        "Bytes of requests that a caller may send in a second. Further requests get `busy`. 0: any number.",
        least=0,
        most=1_099_511_627_776,
    )
    max_connections: int = _setting(
        4_096,
        "Connections that may be open at once on all sockets; fewer if the limit of open files is low "
        "(LimitNOFILE=). A caller may have as many as are free. Connections beyond that are closed.",
        least=16,
        most=1_000_000,
    )
    traffic_memory_mb: int = _setting(
        256,
        "Memory that requests may take while they arrive, and replies until they are read, in MiB. Above it "
        "the daemon closes the connection that holds most of the caller that holds most.",
        least=16,
        most=1_048_576,
    )
    max_request_bytes: int = _setting(
        65_536,
        "Largest request frame, in bytes. A larger one gets `too_large`; one of more than twice this size "
        "ends the connection without a reply.",
        least=1024,
        most=8_388_608,
    )
    max_text_chars: int = _setting(
        4096,
        "Longest text in a question, in characters, names of members included. A question with a longer one "
        "gets `too_large`. A pack may allow more at paths of its own (`limits.texts`).",
        least=256,
        most=8_388_608,
    )
    rule_budget_ms: int = _setting(
        250,
        "Processor time that the rules of one request may take, in milliseconds; each item of a batch is a "
        "request. Rules that need more are stopped: the decision is the strictest outcome, with the reason "
        "code rules_budget.",
        least=1,
        most=60_000,
    )
    socket_mode: int = _setting(
        0o660,
        "File mode of the ipc socket. Anybody who may open the socket has the roles of local.",
        least=0,
        most=0o777,
    )
    log_format: str = _setting(
        "auto",
        "Format of the log lines: json, or pretty for people. auto: json if systemd's journal reads them.",
        choices=("auto", "json", "pretty"),
    )
    log_level: str = _setting(
        "info",
        "Lowest level that is logged. At debug the log also has each decision by its id, and the texts of "
        "refusals and exceptions, which may repeat parts of a request.",
        choices=("debug", "info", "warning", "error"),
    )
    metrics_port: int = _setting(
        0,
        "Port of 127.0.0.1 at which Prometheus can read the metrics, as can every process of this "
        "machine. 0: no port. `thorpolicy metrics` needs no port.",
        least=0,
        most=65_535,
    )
    otel_endpoint: str = _setting(
        "",
        "Base URL of an OpenTelemetry collector (OTLP/HTTP) that gets a span of each decision, such as "
        "http://127.0.0.1:4318. It must be https, or http on loopback. Needs the extra otel. If empty, no "
        "span is made.",
    )
    otel_ratio: float = _setting(
        1.0,
        "Share of the decisions whose outcome is an allow that otel_endpoint gets. It gets every other one.",
        least=0,
        most=1,
    )
    stall_s: float = _setting(
        300.0,
        "Seconds that the engine or the journal may make no progress while work waits. After that the "
        "daemon logs the stall, refuses the requests in flight and exits with status 6, so that it can be "
        "restarted. It must exceed the longest decode. 0: never.",
        least=0,
        most=86_400,
    )
    shutdown_s: float = _setting(
        10.0,
        "Seconds that a stop may take to answer the requests in flight before it is forced.",
        least=0.1,
        most=600,
    )

    synchronous: str = _setting(
        "FULL",
        "SQLite's synchronous mode: FULL, or NORMAL (a power loss can lose the last commits).",
        choices=("FULL", "NORMAL"),
    )
    masked: tuple[str, ...] = _setting(
        (),
        "JSON pointers into an evaluation, such as `/context/password`, or to an attribute of a source, "
        "`/sources/NAME/ATTRIBUTE`, whose values are never recorded. Of an attribute a keyed digest is "
        "recorded instead. A decision with a masked value cannot be replayed.",
    )
    min_free_mb: int = _setting(
        64, "Free disk space below which new requests are refused, in MiB.", least=0, most=1_048_576
    )
    journal_quota_mb: int = _setting(
        4_096,
        "What each caller may have recorded in 24 hours, in MiB of the stored questions, decisions and "
        "records. Above it the caller gets `busy`. From 80 % on there is a warning in the log and a counter. "
        "0: no quota.",
        least=0,
        most=1_048_576,
    )
    ballast_mb: int = _setting(
        16,
        "Size of a reserve file, in MiB. It is deleted when the disk is full, so that admitted requests "
        "can still be recorded.",
        least=0,
        most=65_536,
    )
    on_full: str = _setting(
        "refuse",
        "What to do when the disk is full. refuse: refuse requests until there is space. halt: exit with "
        "status 5.",
        choices=("refuse", "halt"),
    )
    checkpoint_dir: Path = _setting(
        Path, "Directory of the signed checkpoints. Keep it on another disk, or copy it to another machine."
    )
    checkpoint_key: Path = _setting(
        Path,
        "Ed25519 key that signs checkpoints (PEM, mode 0600). The daemon makes it if it is missing. A "
        "systemd credential `checkpoint.key` takes precedence.",
    )
    checkpoint_events: int = _setting(
        10_000, "Most events between two checkpoints.", least=1, most=1_000_000_000
    )
    checkpoint_s: float = _setting(
        3_600.0, "Seconds between two checkpoints while there are new events.", least=1, most=31_536_000
    )
    verify_events_per_s: int = _setting(
        200,
        "Events of the journal that the daemon checks again each second, hashes and rows, from the first "
        "event to the newest, then anew. 0: never.",
        least=0,
        most=1_000_000,
    )

    summaries_per_s: int = _setting(
        50,
        "Context summaries that the daemon makes each second while nothing else waits. 0: none, and "
        "`log search` finds nothing new.",
        least=0,
        most=10_000,
    )

    pattern_cases: int = _setting(
        15,
        "Least number of similar corrections or exceptions for which `thorpolicy patterns` proposes a rule.",
        least=3,
        most=10_000,
    )

    device: str = _setting(
        "",
        "Name of this device in a fleet: letters, digits and . _ -. If empty: the name of the machine.",
        metavar="NAME",
    )
    fleet_url: str = _setting(
        "",
        "The fleet's store, to which `thorpolicy ship` ships: postgresql://ROLE@HOST/DATABASE, without a "
        "password. To another machine the certificate and the name of the server are verified.",
        metavar="URL",
    )
    alert_shipping_s: float = _setting(
        600.0,
        "Seconds that a sink of `thorpolicy ship` may be behind before the daemon raises an alert. 0: none.",
        least=0,
        most=10_000_000,
    )

    mcp_subject: str = _setting(
        "",
        "Id of the subject that `thorpolicy mcp proxy` asks about, such as the person whose agent it is. If "
        "empty: the name of the user that runs it.",
        metavar="ID",
    )

    embeddings_per_s: int = _setting(
        0,
        "Situations of past decisions that the daemon embeds each second while nothing else waits, so that "
        "`similar` finds them by what they are about; 20 is a good value. Needs the embedder "
        "(./scripts/export-embedder) and 200 MB of memory. 0: none, and `similar` compares words only.",
        least=0,
        most=10_000,
    )

    similar_most: int = _setting(
        1_000_000,
        "Vectors that `similar` keeps in memory: those of the newest decisions. Each takes about 0.9 kB.",
        least=1,
        most=10_000_000,
    )
    similar_weight_similarity: float = _weight(1.0, "how similar its situation is")
    similar_weight_words: float = _weight(0.3, "the share of the question's words that its summary has")
    similar_weight_favourable: float = _weight(0.15, "a recorded outcome SUCCESS")
    similar_weight_reviewed: float = _weight(0.15, "a verdict of a person")
    similar_weight_judgment_call: float = _weight(0.1, "that it was a judgment call")
    similar_weight_cited: float = _weight(0.05, "how often other decisions cite it")
    similar_weight_recent: float = _weight(0.05, "how recent it is")

    def __post_init__(self) -> None:
        for f in fields(self):
            value, meta = getattr(self, f.name), f.metadata
            if meta["least"] is not None and not meta["least"] <= value <= meta["most"]:
                raise ConfigError(
                    f"{f.name} is {value}; it must be between {meta['least']} and {meta['most']}"
                )
            if meta["choices"] is not None and value not in meta["choices"]:
                raise ConfigError(
                    f"{f.name} is {value!r}; it must be one of {_join_choices(meta['choices'])}"
                )
        for pointer in self.masked:
            if not pointer.startswith(MASKABLE) or pointer.endswith("/"):
                raise ConfigError(
                    f"masked holds {pointer!r}; it must name a value below {' or '.join(MASKABLE)}"
                )
            if pointer.startswith("/sources/") and pointer.count("/") < 3:
                raise ConfigError(
                    f"masked holds {pointer!r}; it must name an attribute, as /sources/NAME/ATTRIBUTE"
                )
        for entry in self.roles:
            grant = GRANT.fullmatch(entry)
            if grant is None or not set(grant[2].split("+")) <= set(get_args(Role)):
                raise ConfigError(
                    f"roles holds {entry!r}; it must look like local=ask+record, user:NAME=review, "
                    f"group:NAME=.., uid:NUMBER=.. or gid:NUMBER=.., with the roles "
                    f"{', '.join(get_args(Role))}"
                )
        for entry in self.people:
            person = PERSON.fullmatch(entry)
            if person is None or (person[1] == "uid" and not re.fullmatch("[0-9]{1,10}", person[2])):
                raise ConfigError(
                    f"people holds {entry!r}; it must look like user:NAME=kim;manager+recorder;finance, with "
                    "uid:NUMBER, key:NAME, token:NAME or cert:NAME in place of user:NAME, roles after the "
                    "first ; and groups after the second"
                )
        for entry in self.sources:
            if SOURCE_OVERRIDE.fullmatch(entry) is None:
                raise ConfigError(
                    f"sources holds {entry.partition('=')[0]!r}; it must look like NAME.path=FILE, "
                    "NAME.url=URL, NAME.timeout_ms=NUMBER or NAME.key=PLACE"
                )
        if self.device and not DEVICE.fullmatch(self.device):
            raise ConfigError(
                f"device is {self.device!r}; it must have at most 128 letters, digits and . _ -, and "
                "begin with a letter or a digit"
            )
        if unknown := [entry for entry in self.enrich_on if entry not in TRIGGERS]:
            raise ConfigError(f"enrich_on holds {unknown[0]!r}; it must hold some of {', '.join(TRIGGERS)}")
        for entry in self.packs_for:
            if PACK_GRANT.fullmatch(entry) is None:
                raise ConfigError(
                    f"packs_for holds {entry!r}; it must look like local=PACK+PACK, local=*, user:NAME=.., "
                    "group:NAME=.., uid:NUMBER=.., gid:NUMBER=.. or key:NAME=.."
                )
        if unknown := [entry for entry in self.count_from if entry not in (*get_args(Role), OWN)]:
            raise ConfigError(
                f"count_from holds {unknown[0]!r}; it must hold roles ({', '.join(get_args(Role))}) or {OWN}"
            )
        keys = tuple(os.path.abspath(os.path.expanduser(path)) for path in self.pack_keys)  # noqa: PTH100, PTH111
        object.__setattr__(self, "pack_keys", keys)
        if self.keys_dir == Path():
            object.__setattr__(self, "keys_dir", self.state_dir / "keys")
        if self.checkpoint_dir == Path():
            object.__setattr__(self, "checkpoint_dir", self.state_dir / "checkpoints")
        if self.checkpoint_key == Path():
            object.__setattr__(self, "checkpoint_key", self.state_dir / "checkpoint.key")
        if not self.endpoint:
            object.__setattr__(self, "endpoint", f"ipc://{self._runtime_dir() / 'policy.sock'}")
        self._check_endpoint()
        object.__setattr__(self, "engine_url", self.engine_url.rstrip("/").removesuffix("/v1"))
        self._check_engine()

    def _runtime_dir(self) -> Path:
        if runtime := os.environ.get("XDG_RUNTIME_DIR"):
            return Path(runtime) / "thor-policy"
        if os.geteuid() == 0 and not in_checkout():
            return Path("/run/thor-policy")
        return self.state_dir

    def _check_endpoint(self) -> None:
        if self.tcp_endpoint and _tcp_address(self.tcp_endpoint) is None:
            raise ConfigError(
                f"tcp_endpoint is {self.tcp_endpoint!r}; it must look like tcp://192.0.2.7:5555, with the "
                "address of an interface of this machine, or *"
            )
        scheme, _, rest = self.endpoint.partition("://")
        if scheme == "tcp" and (address := _tcp_address(self.endpoint)) and address[0] != "*":
            return
        if scheme != "ipc" or not rest.startswith("/"):
            raise ConfigError(
                f"endpoint is {self.endpoint!r}; it must look like ipc:///path/to/socket or, in a command "
                "for a daemon on another machine, like tcp://host:port"
            )
        limit = MAX_IPC_PATH_BYTES - len(CONTROL_SUFFIX)
        if (size := len(os.fsencode(rest))) > limit:
            raise ConfigError(
                f"the socket path of endpoint {self.endpoint!r} has {size} bytes; the limit is "
                f"{limit}: choose a shorter one with --endpoint ipc:///tmp/policy.sock"
            )

    def _check_engine(self) -> None:
        if self.engine_key and not _KEY_REFERENCE.fullmatch(self.engine_key):
            raise ConfigError(
                "engine_key is neither the name of an environment variable (capitals, digits, _) nor the "
                "absolute path of a file; if it is the key itself, put the key into a file of mode 0600 and "
                "set engine_key to the path of that file (the value is not repeated here)"
            )
        self._check_url("engine_url", self.engine_url, cure="and set engine_key", sent="requests")
        self._check_url(
            "otel_endpoint", self.otel_endpoint, cure="and use OTEL_EXPORTER_OTLP_HEADERS", sent="spans"
        )

    @staticmethod
    def _check_url(name: str, text: str, *, cure: str, sent: str) -> None:
        """Check a URL to which `sent` goes; empty is right. Raises ConfigError."""
        if not text:
            return
        try:
            url = urlsplit(text)
            host, _ = url.hostname or "", url.port
        except ValueError:  # its message may repeat a password
            raise ConfigError(f"{name} is not a URL; it must look like https://host:port") from None
        if url.username is not None or url.password is not None:
            raise ConfigError(f"{name} holds a user or a password; remove it {cure}")
        if url.scheme not in ("http", "https") or not host or url.query or url.fragment:
            raise ConfigError(f"{name} is {text!r}; it must look like https://host:port")
        if url.scheme == "http" and not on_loopback(host):
            raise ConfigError(
                f"{name} is {text!r}; {sent} may leave this machine over https only: use "
                "https, or http to an ssh tunnel at 127.0.0.1"
            )

    @property
    def key_file(self) -> Path | None:
        """The file of the CURVE key that `key` names; None if `key` is empty."""
        if not self.key:
            return None
        return Path(self.key).expanduser() if "/" in self.key else self.keys_dir / f"{self.key}.key"

    @property
    def device_name(self) -> str:
        """The name of this device in a fleet. Raises ConfigError if the machine's own cannot be one."""
        name = self.device or platform.node()
        if not DEVICE.fullmatch(name):
            raise ConfigError(f"the machine's name {name!r} cannot name a device; set device")
        return name

    @property
    def socket_path(self) -> Path:
        """File behind the ipc endpoint of a daemon. Raises ConfigError for a tcp endpoint."""
        if not self.endpoint.startswith("ipc://"):
            raise ConfigError(
                f"endpoint is {self.endpoint!r}, but a daemon listens at an ipc endpoint; besides, for "
                f"holders of a CURVE key, with --tcp-endpoint {self.endpoint}"
            )
        return Path(self.endpoint.removeprefix("ipc://"))

    @property
    def events_endpoint(self) -> str:
        """Address at which decisions and explanations are published as soon as they are recorded."""
        return self.endpoint + EVENTS_SUFFIX

    @property
    def is_contextual(self) -> bool:
        """Whether confidence gets a contextual calibration where nothing was reviewed."""
        return self.contextual_calibration == "on"

    @property
    def events_path(self) -> Path:
        """File behind the events endpoint."""
        return Path(f"{self.socket_path}{EVENTS_SUFFIX}")

    @property
    def control_endpoint(self) -> str:
        """Address at which status and metrics are answered, whatever else the daemon does."""
        return self.endpoint + CONTROL_SUFFIX

    @property
    def control_path(self) -> Path:
        """File behind the control endpoint."""
        return Path(f"{self.socket_path}{CONTROL_SUFFIX}")

    @property
    def journal_path(self) -> Path:
        """The SQLite file of the journal."""
        return self.state_dir / "policy_decisions.db"


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Build a Config from file, environment and flags; the last one wins.

    Raises ConfigError that names the source, the setting and what was expected.
    """
    known = {f.name: f for f in fields(Config)}
    hints = typing.get_type_hints(Config)
    values: dict[str, Any] = {}
    if path is None and (named := environ.get("THOR_POLICY_CONFIG")):
        path = Path(named)
    if path is not None:
        for key, raw in _read_toml(path).items():
            if key not in known:
                raise ConfigError(f"{path}: unknown setting {key!r}; known: {', '.join(sorted(known))}")
            values[key] = _convert(raw, hints[key], f"{path}: {key}")
    for name in known:
        if (text := environ.get(variable := f"THOR_POLICY_{name.upper()}")) is not None:
            values[name] = _convert(text, hints[name], variable)
    for name, raw in (flags or {}).items():
        if raw is not None:
            values[name] = _convert(raw, hints[name], f"--{name.replace('_', '-')}")
    return Config(**values)


def with_live_settings(config: Config, reread: Config) -> tuple[Config, tuple[str, ...]]:
    """`config` with the live settings of `reread`, and the names of the other settings that differ.

    Raises ConfigError if old and new values are invalid together.
    """
    differing = tuple(f.name for f in fields(Config) if getattr(config, f.name) != getattr(reread, f.name))
    live = {name: getattr(reread, name) for name in differing if name in LIVE_SETTINGS}
    need_restart = tuple(name for name in differing if name not in LIVE_SETTINGS)
    return dataclasses.replace(config, **live), need_restart


def with_changes(config: Config, text: str) -> Config:
    """`config` with the changes in `text`, such as `model=NAME,kv_type=q8_0`. Raises ConfigError."""
    hints = typing.get_type_hints(Config)
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in hints:
            raise ConfigError(f"{text!r}: unknown setting {name!r}; known: {', '.join(sorted(hints))}")
        values[name] = _convert(value, hints[name], f"{text!r}: {name}")
    return dataclasses.replace(config, **values)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return strict_toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _convert(raw: Any, kind: Any, where: str) -> Any:
    if typing.get_origin(kind) is tuple:
        items = raw.split(",") if isinstance(raw, str) else raw
        if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
            return tuple(item.strip() for item in items if item.strip())
        raise ConfigError(f"{where} must be a list of strings, not {raw!r}")
    if kind is Path and isinstance(raw, str | Path) and str(raw):
        try:
            return Path(raw).expanduser().absolute()
        except RuntimeError as error:
            raise ConfigError(f"{where} is {str(raw)!r}: {error}") from error
    if kind is str and isinstance(raw, str):
        return raw
    if kind in (int, float) and not isinstance(raw, bool):
        try:
            if isinstance(raw, str):
                return int(raw, 0) if kind is int else float(raw)
            if kind is float or isinstance(raw, int):
                return kind(raw)
        except (TypeError, ValueError, OverflowError):
            pass
    raise ConfigError(f"{where} must be of type {kind.__name__}, not {raw!r}")


def _join_choices(choices: tuple[str, ...]) -> str:
    return ", ".join(choice or "empty" for choice in choices)


def _tcp_address(endpoint: str) -> tuple[str, int] | None:
    """Host and port of `tcp://host:port`; None for any other text."""
    try:
        url = urlsplit(endpoint)
        plain = endpoint == f"tcp://{url.netloc}" and "@" not in url.netloc
        return (url.hostname, url.port) if plain and url.hostname and url.port else None
    except ValueError:
        return None


def on_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine: localhost, or an address of loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def settings() -> list[dataclasses.Field[Any]]:
    """All settings, in order; the command line makes its options from them."""
    return list(fields(Config))


#: Defaults that depend on where the package is installed, in words.
_DEFAULTS_IN_WORDS = {
    "state_dir": "`results/` of a checkout, otherwise the user's state directory",
    "models_dir": "`models/` of a checkout, otherwise the user's data directory",
    "endpoint": "`$XDG_RUNTIME_DIR/thor-policy/policy.sock`, `/run/thor-policy/policy.sock` for root, "
    "otherwise in the state directory",
    "socket_mode": "`0o660`",
    "keys_dir": "`keys/` in the state directory",
    "checkpoint_dir": "`checkpoints/` in the state directory",
    "checkpoint_key": "`checkpoint.key` in the state directory",
}


#: Characters in a line of the settings page.
PAGE_WIDTH = 100


def settings_page() -> str:
    """The text of docs/reference/settings.md: every setting with its default, range and help, as Markdown."""
    lines = [
        "# Settings",
        "",
        "`scripts/settings-doc` writes this page. Each name is a key of the TOML file.",
        "`THOR_POLICY_<NAME>` sets it from the environment. A setting marked with a flag is also a",
        "command-line option. A setting marked live is reread by a running daemon on SIGHUP; any other",
        "needs a restart.",
        "",
    ]
    for f in fields(Config):
        meta = f.metadata
        default = _DEFAULTS_IN_WORDS.get(f.name) or f"`{f.default!r}`".replace("'", '"')
        bounds = "" if meta["least"] is None else f"; {meta['least']} to {meta['most']}"
        bounds += f"; one of {_join_choices(meta['choices'])}" if meta["choices"] else ""
        flag = f", flag `--{f.name.replace('_', '-')}`" if meta["flag"] else ""
        flag += ", live" if f.name in LIVE_SETTINGS else ""
        for paragraph in (f"**`{f.name}`**{flag}: {meta['help']}", f"Default: {default}{bounds}"):
            lines += textwrap.wrap(paragraph, PAGE_WIDTH, break_long_words=False, break_on_hyphens=False)
        lines.append("")
    return "\n".join(lines)
