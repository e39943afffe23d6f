"""Finds configuration files by path or bare name and applies `--config.a.b=value` overrides (ml_collections)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from input_pipeline.errors import UserError
from msfl_jax.config import from_config_dict
from msfl_jax.config_build import nearest

PACKAGE = Path(__file__).parent
T = TypeVar("T")


def shipped_configs() -> dict[str, Path]:
    """Configurations that come with the package, by bare name: from the checkout, else from the wheel."""
    folder = next((f for f in (PACKAGE.parent / "configs", PACKAGE / "configs") if (f / "demo.py").is_file()), None)
    return {file.stem: file for file in sorted(folder.glob("*.py"))} if folder else {}


def find_config(name: str) -> Path:
    """The file behind a path or the bare name of a shipped configuration.

    Raises:
      UserError: there is neither such a file nor such a name.
    """
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        return path
    known = shipped_configs()
    if name in known:
        return known[name]
    hint = nearest(name, known)
    raise UserError(f"--config: no configuration '{name}'{hint}; expected a .py file or one of {', '.join(known)}")


def load_config(
    name: str,
    overrides: Sequence[str] = (),
    *,
    make: Callable[[ConfigDict], T] = from_config_dict,
) -> T:
    """Reads a configuration and applies overrides.

    Args:
      name: `FILE[:arg]` or `NAME[:arg]`; the argument is handed to the file's get_config.
      overrides: `--config.a.b=value` each.
      make: makes the frozen configuration; the default one is that of pretraining.

    Raises:
      UserError: the file, a key, a type or a value is wrong.
    """
    base, _, argument = name.partition(":")
    file = find_config(base)
    _refuse_malformed(overrides)
    plain = _plain_keys(base, file, argument)
    values = flags.FlagValues()
    argv = ["msfl", f"--config={file}:{argument}", *overrides]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        settings = holder.value
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(_one_line(base, file, argument, overrides, plain, error)) from error
    return make(settings)


def _refuse_malformed(overrides: Sequence[str]) -> None:
    for override in overrides:
        if not override.startswith("--config.") or "=" not in override:
            raise UserError(f"unknown option '{override}'; expected --config.SECTION.KEY=VALUE")


def _one_line(
    base: str, file: Path, argument: str, overrides: Sequence[str], plain: dict[str, Any], error: Exception
) -> str:
    """Names the override at fault: the first that the plain configuration has no key or no type for."""
    for override in overrides:
        path, _, value = override.removeprefix("--config.").partition("=")
        if path not in plain:
            return f"{base}: unknown key '{path}'{nearest(path, plain)}"
        if isinstance(plain[path], dict):
            return f"{base}: '{path}' is a section; expected one of its keys, such as {path}.{next(iter(plain[path]))}"
        if not _accepted(file, argument, override):
            return f"{base}: '{path}' is '{value}'; expected {type(plain[path]).__name__} such as {plain[path]!r}"
    return f"{base}: {str(error).splitlines()[0]}"


def _accepted(file: Path, argument: str, override: str) -> bool:
    """Whether a configuration takes this override alone."""
    values = flags.FlagValues()
    argv = ["msfl", f"--config={file}:{argument}", override]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        return bool(holder.value)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError):
        return False


def _plain_keys(base: str, file: Path, argument: str) -> dict[str, Any]:
    """Every dotted key of a configuration without overrides.

    Raises:
      UserError: the file itself is at fault: whatever its code raises, in one line.
    """
    values = flags.FlagValues()
    argv = ["msfl", f"--config={file}:{argument}"]
    try:
        holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        values(argv)
        return dict(_flatten(holder.value.to_dict(), ""))
    except UserError:
        raise
    except Exception as error:  # a configuration is a program: it may raise anything
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{base}: cannot be read ({what}{line}); expected a file with get_config(arg) -> ConfigDict"
        ) from error


def _flatten(values: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield prefix + key, value
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
