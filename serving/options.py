"""The settings of `WorkerSettings` as options of a command, the same for each command that takes them."""

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer
from pydantic.fields import FieldInfo

from serving.limits import Limits
from serving.settings import WorkerSettings

HELP = {
    "runtime": "The graph to run, and the library that runs it.",
    "precision": "int8: several times as fast on many CPUs; float16: for GPUs. If the bundle has it.",
    "batch_size": "Requests that a worker gets at once, at most.",
    "workers": "Processes that serve a model.",
    "threads": "Threads of one inference on the CPU.",
    "timeout_s": "Seconds that a worker may take for a batch before it is replaced.",
    "max_bytes": "Bytes of one encoded image.",
    "max_pixels": "Height times width of one image.",
    "max_side": "Height and width of one image, each.",
    "max_instances": "Images in one request.",
    "max_request_pixels": "Pixels of all images of one request.",
    "max_request_bytes": "Bytes of one request.",
    "max_response_bytes": "Bytes of the answers to one request.",
}
NAMES = {"timeout_s": "--response-timeout"}  # where the option is not called as the setting
PANEL = "Settings of the models"
OF_THE_MACHINE = "from the server's cores"  # of a setting that is None

Command = TypeVar("Command", bound=Callable[..., object])


def setting_fields() -> dict[str, FieldInfo]:
    """All settings, those of the limits among them, by their names."""
    return {
        name: field for name, field in WorkerSettings.model_fields.items() if name != "limits"
    } | Limits.model_fields


def option_name(setting: str) -> str:
    """What a setting is called on the command line."""
    return NAMES.get(setting, f"--{setting.replace('_', '-')}")


def takes_settings(unset: str | None = None, without: Sequence[str] = ()) -> Callable[[Command], Command]:
    """Give a command with `**settings` an option for each setting; what is not named is None.

    Args:
        unset: what holds for a setting that is not named; None means its default.
        without: settings that the command has no use for.
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        named = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = {name: field for name, field in setting_fields().items() if name not in without}
        options = [_parameter(name, field, unset) for name, field in fields.items()]
        vars(command)["__signature__"] = own.replace(parameters=[*named, *options])
        return command

    return decorate


def _parameter(name: str, field: FieldInfo, unset: str | None) -> inspect.Parameter:
    default = OF_THE_MACHINE if field.default is None else str(field.default)
    least = next((rule.ge for rule in field.metadata if hasattr(rule, "ge")), None)
    option = typer.Option(
        option_name(name), min=least, help=HELP[name], show_default=unset or default, rich_help_panel=PANEL
    )
    annotation: Any = Annotated[field.annotation | None, option]  # type: ignore[operator]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
