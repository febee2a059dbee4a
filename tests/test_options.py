"""Settings on the command line."""

import typer
from typer.testing import CliRunner

import serving.__main__
from serving.options import HELP, option_name, setting_fields, takes_settings
from serving.settings import DEFAULT_SETTINGS, WorkerSettings, changed


def test_every_setting_is_an_option_of_package_start_and_deploy() -> None:
    group = typer.main.get_command(serving.__main__.app)
    assert isinstance(group, typer.core.TyperGroup)

    names = {option_name(setting) for setting in setting_fields()}
    assert set(HELP) == set(setting_fields())
    for command in ("package", "start", "deploy"):
        offered = {name for parameter in group.commands[command].params for name in parameter.opts}
        assert names <= offered
    of_triton = {name for parameter in group.commands["triton"].params for name in parameter.opts}
    assert names - of_triton == {"--response-timeout"}  # Triton replaces no instance


def test_options_change_the_settings_that_they_name() -> None:
    found: list[WorkerSettings] = []
    app = typer.Typer(add_completion=False)

    @app.command()
    @takes_settings()
    def command(**settings: object) -> None:
        found.append(changed(DEFAULT_SETTINGS, **settings))

    assert CliRunner().invoke(app, []).exit_code == 0
    assert (
        CliRunner().invoke(app, ["--precision", "int8", "--response-timeout", "17", "--max-bytes", "9"]).exit_code == 0
    )
    assert found == [DEFAULT_SETTINGS, changed(DEFAULT_SETTINGS, precision="int8", timeout_s=17, max_bytes=9)]
    refused = CliRunner().invoke(app, ["--workers", "0"])
    assert (refused.exit_code, "--workers" in refused.output) == (2, True)


def test_help_says_what_holds_if_an_option_is_not_named() -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    @takes_settings()
    def defaults(**settings: object) -> None: ...

    @app.command()
    @takes_settings("as packaged")
    def packaged(**settings: object) -> None: ...

    own = CliRunner().invoke(app, ["defaults", "--help"]).output
    assert "(32)" in own
    assert "(float32)" in own
    assert "server's cores" in own
    assert "as packaged" in CliRunner().invoke(app, ["packaged", "--help"]).output
