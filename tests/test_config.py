"""Config: the sources of a setting, their precedence, and the values that are refused."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy import config
from thor_policy.config import MAX_IPC_PATH_BYTES, Config
from thor_policy.core.errors import ConfigError

ENDPOINT = "ipc:///tmp/policy.sock"


@pytest.fixture(autouse=True)
def no_runtime_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime directory of the person who runs the tests must not influence them."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def toml(folder: Path, text: str) -> Path:
    path = folder / "thor-policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- precedence


def test_a_flag_outranks_the_environment_which_outranks_the_file_which_outranks_the_default(
    tmp_path: Path,
) -> None:
    path = toml(tmp_path, "threads = 1\ndeadline_ms = 1\nmax_in_flight = 1")
    environ = {"THOR_POLICY_DEADLINE_MS": "2", "THOR_POLICY_MAX_IN_FLIGHT": "2"}
    loaded = config.load(path, environ=environ, flags={"max_in_flight": 3})
    assert (loaded.threads, loaded.deadline_ms, loaded.max_in_flight) == (1, 2, 3)
    assert loaded.max_request_bytes == Config().max_request_bytes


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    environ = {"THOR_POLICY_MODEL": "other"}
    assert config.load(environ=environ, flags={"model": None}).model == "other"


def test_the_environment_may_name_the_file_and_an_argument_outranks_it(tmp_path: Path) -> None:
    path = toml(tmp_path, 'pack = "named"')
    environ = {"THOR_POLICY_CONFIG": str(path)}
    assert config.load(environ=environ).pack == "named"
    (tmp_path / "given").mkdir()
    assert config.load(toml(tmp_path / "given", 'pack = "given"'), environ=environ).pack == "given"


def test_without_any_source_every_setting_has_its_default() -> None:
    assert config.load(environ={}) == Config()


def test_variables_without_the_prefix_are_ignored() -> None:
    assert config.load(environ={"THREADS": "7", "thor_policy_threads": "7"}) == Config()


@pytest.mark.parametrize("setting", config.settings(), ids=lambda setting: setting.name)
def test_the_default_of_every_setting_can_be_written_down_and_read_back(
    setting: dataclasses.Field[Any],
) -> None:
    default = getattr(Config(), setting.name)
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    assert config.load(environ={f"THOR_POLICY_{setting.name.upper()}": text}) == Config()


# ---------------------------------------------------------------- values


def test_values_of_the_environment_take_the_type_of_their_setting() -> None:
    environ = {
        "THOR_POLICY_SOCKET_MODE": "0o600",
        "THOR_POLICY_SHUTDOWN_S": "2.5",
        "THOR_POLICY_GPU_LAYERS": "-1",
        "THOR_POLICY_MASKED": "/context/text, /context/pin,",
    }
    loaded = config.load(environ=environ)
    assert (loaded.socket_mode, loaded.shutdown_s, loaded.gpu_layers) == (0o600, 2.5, -1)
    assert loaded.masked == ("/context/text", "/context/pin")


def test_values_of_the_file_take_the_type_of_their_setting(tmp_path: Path) -> None:
    path = toml(tmp_path, 'socket_mode = 0o600\nshutdown_s = 2\nmasked = ["/context/text"]')
    loaded = config.load(path, environ={})
    assert (loaded.socket_mode, loaded.shutdown_s, loaded.masked) == (0o600, 2.0, ("/context/text",))
    assert isinstance(loaded.shutdown_s, float)


def test_a_list_may_be_empty() -> None:
    assert config.load(environ={"THOR_POLICY_MASKED": ""}).masked == ()


def test_paths_become_absolute_and_know_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    loaded = config.load(environ={}, flags={"state_dir": Path("state"), "models_dir": "~/models"})
    assert loaded.state_dir == tmp_path / "state"
    assert loaded.models_dir == Path("/home/somebody/models")
    assert loaded.journal_path == tmp_path / "state" / "policy_decisions.db"


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().threads = 3  # type: ignore[misc]


# ---------------------------------------------------------------- refusals name the source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model_dir = "x"', r"toml: unknown setting 'model_dir'; known: .*models_dir"),
        ("[serve]\nthreads = 1", r"toml: unknown setting 'serve'; known: "),
        ('threads = "many"', r"toml: threads must be of type int, not 'many'"),
        ("threads = 1.5", r"toml: threads must be of type int, not 1\.5"),
        ("threads = true", r"toml: threads must be of type int, not True"),
        ("shutdown_s = false", r"toml: shutdown_s must be of type float, not False"),
        ("model = 3", r"toml: model must be of type str, not 3"),
        ('state_dir = ""', r"toml: state_dir must be of type Path, not ''"),
        ("state_dir = 3", r"toml: state_dir must be of type Path, not 3"),
        ("masked = 3", r"toml: masked must be a list of strings, not 3"),
        ("masked = [3]", r"toml: masked must be a list of strings, not \[3\]"),
        (f"shutdown_s = 1{'0' * 400}", r"toml: shutdown_s must be of type float, not 10"),
        ('state_dir = "~nobody-of-that-name/x"', r"toml: state_dir is '~nobody-of-that-name/x': "),
        ("threads = ", r"toml is not valid TOML: Invalid value \(at end of document\)"),
        ("threads = 1\nthreads = 2", r"toml is not valid TOML: Cannot overwrite a value \(at "),
    ],
)
def test_a_bad_file_is_refused_with_its_name_the_key_and_what_was_expected(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}/thor-policy.{message}"):
        config.load(toml(tmp_path, text), environ={})


@pytest.mark.parametrize(
    "value",
    ["[]", "[1]", "{}", "{a = 1}", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "nan", "-inf", "9e999"],
)
def test_a_value_of_any_type_of_toml_is_taken_or_refused_by_each_setting(value: str, tmp_path: Path) -> None:
    def refusal(name: str) -> str | None:
        try:
            config.load(toml(tmp_path, f"{name} = {value}"), environ={})
        except ConfigError as error:
            return str(error)
        return None

    refusals = {setting.name: refusal(setting.name) for setting in config.settings()}
    assert all(name in text for name, text in refusals.items() if text is not None)


@pytest.mark.parametrize("text", ["many", "1.5", "", "0o9", "0660", "true", "1" * 5000])
def test_a_bad_variable_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^THOR_POLICY_SOCKET_MODE must be of type int, not '"):
        config.load(environ={"THOR_POLICY_SOCKET_MODE": text})


def test_a_bad_flag_is_refused_with_the_flag_as_it_is_typed() -> None:
    with pytest.raises(ConfigError, match=r"^--max-in-flight must be of type int, not 'x'"):
        config.load(environ={}, flags={"max_in_flight": "x"})


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "absent.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"^cannot read the config file {path}: {reason}"):
            config.load(path, environ={})


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "thor-policy.toml"
    path.write_bytes(b"threads = 1\n\xff")
    with pytest.raises(ConfigError, match="is not valid TOML: 'utf-8'"):
        config.load(path, environ={})


BOUNDED = [setting for setting in config.settings() if setting.metadata["least"] is not None]


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_a_number_out_of_range_is_refused_with_the_range(setting: dataclasses.Field[Any]) -> None:
    least, most = setting.metadata["least"], setting.metadata["most"]
    for bound in (least, most):
        assert getattr(Config(**{setting.name: bound}), setting.name) == bound
    for beyond in (least - 1, most + 1):
        message = f"^{setting.name} is {beyond}; it must be between {least} and {most}$"
        with pytest.raises(ConfigError, match=message):
            Config(**{setting.name: beyond})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_setting_is_infinite_or_not_a_number(value: str) -> None:
    with pytest.raises(ConfigError, match=f"^shutdown_s is {value}; it must be between"):
        config.load(environ={"THOR_POLICY_SHUTDOWN_S": value})


def test_synchronous_is_full_or_normal() -> None:
    assert Config(synchronous="NORMAL").synchronous == "NORMAL"
    for value in ("OFF", "full", ""):
        with pytest.raises(ConfigError, match=f"^synchronous is '{value}'; it must be one of FULL, NORMAL"):
            Config(synchronous=value)


@pytest.mark.parametrize("pointer", ["context/pin", "/context", "/context/", "/subject/id", "/", ""])
def test_masked_accepts_only_pointers_below_context_or_properties(pointer: str) -> None:
    with pytest.raises(ConfigError, match=r"^masked holds .*; it must name a value below /context/"):
        Config(masked=("/context/text", pointer))


def test_checkpoints_and_their_key_lie_in_the_state_directory_by_default(tmp_path: Path) -> None:
    ours = Config(state_dir=tmp_path)
    assert (ours.checkpoint_dir, ours.checkpoint_key) == (
        tmp_path / "checkpoints",
        tmp_path / "checkpoint.key",
    )
    assert Config(state_dir=tmp_path, checkpoint_dir=Path("/else")).checkpoint_dir == Path("/else")


@given(st.sampled_from(config.settings()), st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_text_in_a_variable_is_accepted_or_refused_with_a_config_error(
    setting: dataclasses.Field[Any], text: str
) -> None:
    with contextlib.suppress(ConfigError):
        config.load(environ={f"THOR_POLICY_{setting.name.upper()}": text})


# ---------------------------------------------------------------- the endpoint


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("tcp://127.0.0.1", "it must look like ipc:///path/to/socket"),
        ("tcp://*:5555", "it must look like ipc:///path/to/socket"),
        ("tcp://a@b:5555", "it must look like ipc:///path/to/socket"),
        ("tcp://b:5555/x", "it must look like ipc:///path/to/socket"),
        ("tcp://b:99999", "it must look like ipc:///path/to/socket"),
        ("ipc://policy.sock", "it must look like ipc:///path/to/socket"),
        ("ipc://", "it must look like ipc:///path/to/socket"),
        ("ipc://@abstract", "it must look like ipc:///path/to/socket"),
        ("inproc://x", "it must look like ipc:///path/to/socket"),
        ("/run/policy.sock", "it must look like ipc:///path/to/socket"),
    ],
)
def test_an_endpoint_is_an_absolute_ipc_path_or_a_tcp_address_and_nothing_else(
    endpoint: str, message: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        Config(endpoint=endpoint)
    assert str(refusal.value).startswith(f"endpoint is '{endpoint}'; {message}")


@pytest.mark.parametrize("endpoint", ["tcp://policy.example:5555", "tcp://192.0.2.7:1", "tcp://[::1]:65535"])
def test_a_tcp_address_is_an_endpoint(endpoint: str) -> None:
    assert Config(endpoint=endpoint).endpoint == Config(tcp_endpoint=endpoint).tcp_endpoint == endpoint


@pytest.mark.parametrize("endpoint", ["tcp://", "tcp://*", "ipc:///tmp/x", "tcp://h:0", "tcp://h:x", "h:5"])
def test_tcp_endpoint_needs_an_address_and_a_port(endpoint: str) -> None:
    assert Config(tcp_endpoint="tcp://*:5555").tcp_endpoint == "tcp://*:5555"
    with pytest.raises(ConfigError, match=r"^tcp_endpoint is .*; it must look like tcp://192\.0\.2\.7:5555"):
        Config(tcp_endpoint=endpoint)


def test_a_key_is_a_name_or_a_path() -> None:
    ours = Config(state_dir=Path("/srv/state"))
    assert (ours.key_file, ours.keys_dir) == (None, Path("/srv/state/keys"))
    assert dataclasses.replace(ours, key="laptop").key_file == Path("/srv/state/keys/laptop.key")
    assert dataclasses.replace(ours, key="./laptop.key").key_file == Path("laptop.key")


def test_a_socket_path_that_the_system_cannot_hold_is_refused_with_its_size() -> None:
    longest = "/" + "s" * 98
    loaded = Config(endpoint=f"ipc://{longest}")
    assert loaded.socket_path == Path(longest)
    assert len(os.fsencode(loaded.control_path)) == MAX_IPC_PATH_BYTES
    with pytest.raises(ConfigError, match="has 100 bytes; the limit is 99: choose a shorter"):
        Config(endpoint=f"ipc://{longest}s")


def test_a_socket_path_is_counted_in_bytes_not_characters() -> None:
    with pytest.raises(ConfigError, match="has 109 bytes; the limit is 99"):
        Config(endpoint="ipc:///" + "ü" * 54)


def test_the_default_socket_lies_in_the_runtime_directory_or_the_state_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Config(state_dir=Path("/srv/state")).socket_path == Path("/srv/state/policy.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert Config().endpoint == "ipc:///run/user/1000/thor-policy/policy.sock"
    assert Config().events_endpoint == "ipc:///run/user/1000/thor-policy/policy.sock.events"
    assert Config(endpoint=ENDPOINT).endpoint == ENDPOINT
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert Config(state_dir=Path("/srv/state")).socket_path == Path("/srv/state/policy.sock")


def test_a_runtime_directory_that_is_too_deep_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "d" * 100)
    with pytest.raises(ConfigError, match=r"has 125 bytes; .* --endpoint ipc:///tmp/policy\.sock"):
        Config()


# ---------------------------------------------------------------- settings changed by a text


def test_with_changes_changes_the_named_settings_only(tmp_path: Path) -> None:
    before = Config(state_dir=tmp_path, threads=2)
    after = config.with_changes(before, "model=/a/b=c.gguf,kv_type=q8_0,cache_size=5")
    assert after == dataclasses.replace(before, model="/a/b=c.gguf", kv_type="q8_0", cache_size=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle=a", "'modle=a': unknown setting 'modle'; known: "),
        ("model=a,", "'model=a,': unknown setting ''"),
        ("threads=two", "'threads=two': threads must be of type int, not 'two'"),
        ("kv_type=f8", "kv_type is 'f8'; it must be one of"),
    ],
)
def test_a_change_of_an_unknown_setting_or_to_a_wrong_value_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        config.with_changes(Config(), text)
    assert str(refusal.value).startswith(message)


# ---------------------------------------------------------------- the settings document themselves


@pytest.mark.parametrize("setting", config.settings(), ids=lambda setting: setting.name)
def test_every_setting_has_help_and_every_flag_a_placeholder(setting: dataclasses.Field[Any]) -> None:
    assert setting.metadata["help"].endswith((".", ")."))
    assert setting.metadata["help"][0].isupper()
    if setting.metadata["flag"]:
        assert setting.metadata["metavar"]


def test_names_of_durations_and_sizes_carry_their_unit() -> None:
    for setting in config.settings():
        if "Seconds" in setting.metadata["help"]:
            assert setting.name.endswith("_s")
        if "milliseconds" in setting.metadata["help"]:
            assert setting.name.endswith("_ms")
        if "in bytes" in setting.metadata["help"]:
            assert setting.name.endswith("_bytes")


@pytest.mark.parametrize("name", ["prompts", "scenarios", "models"])
def test_the_directories_that_ship_with_the_package_are_not_empty(name: Any) -> None:
    assert any(config.data_path(name).iterdir())
