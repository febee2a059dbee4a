"""What the workers of a model are told: written into its archive by `package`, read by whatever serves it.

    settings = WorkerSettings(precision="int8", limits=Limits(max_instances=64))

Every server takes its settings from here, so that a limit means the same in all of them.
"""

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.bundle import Precision
from serving.errors import ServerError
from serving.limits import DEFAULT_LIMITS, Limits
from serving.runtimes import RuntimeName

LEAST_TIMEOUT_S = 10  # several times what `budget.py` lets a batch take


class WorkerSettings(BaseModel):
    """How a model is served.

    Attributes:
        runtime: which graph the workers run.
        precision: of that graph; `float16` and `int8` are the bundle's variants of these names.
        batch_size: requests that a worker gets at once, at most; it gets what has gathered while it was busy.
        workers: processes that serve the model; None leaves it to the machine that serves, see `cores.py`.
        threads: of one inference on the CPU; likewise.
        timeout_s: how long a worker may take for a batch before it is replaced; a legal one never takes so long.
        limits: what one request may ask for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    runtime: RuntimeName = "onnx"
    precision: Precision = "float32"
    batch_size: int = Field(default=32, ge=1)
    workers: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    timeout_s: int = Field(default=120, ge=LEAST_TIMEOUT_S)
    limits: Limits = DEFAULT_LIMITS


DEFAULT_SETTINGS = WorkerSettings()


def changed(settings: WorkerSettings, **changes: object) -> WorkerSettings:
    """Settings with some of them others; what is None stays as it was.

    Args:
        settings: what to start from.
        changes: by the names of settings or of limits.

    Raises:
        ServerError: if a value breaks its rule.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    of_limits = {name: given.pop(name) for name in Limits.model_fields if name in given}
    tree = settings.model_dump() | given
    tree["limits"] |= of_limits
    try:
        return WorkerSettings.model_validate(tree)
    except ValidationError as exc:
        first = exc.errors()[0]
        rule = str(first["msg"]).removeprefix("Input should be ")
        raise ServerError(f"{first['loc'][-1]} must be {rule}, got {first['input']!r}") from exc
