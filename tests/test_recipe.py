"""Recipes: what loads, what overrides do, and what every mistake is answered with."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from training.recipe import (
    Notes,
    Recipe,
    RecipeError,
    RefitSpec,
    dump_recipe,
    load_recipe,
    notes_of,
    parse_recipe,
    recipe_names,
    recorded_recipe,
)

SMALL = """
seed = 3
[data]
name = "digits"
[encoder]
dim = 9
[head]
kind = "lda"
[loss]
kind = "dnll"
[fit]
epochs = 2
"""
REFIT = '[refit]\nhead = "mda"\ndim = 4\ncomponents = 2\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL + REFIT)
    return file


def message_of(file: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file), overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_bundled_recipe_loads(name: str) -> None:
    loaded, recipe = load_recipe(name)

    assert loaded == name
    assert isinstance(recipe, Recipe)
    assert recipe.description


def test_bundled_recipes_include_the_demo_and_the_flagship() -> None:
    assert {"digits-mda", "mnist-mda"} <= set(recipe_names())


def test_recipe_is_named_after_its_file(file: Path) -> None:
    name, recipe = load_recipe(str(file))

    assert name == "small"
    assert (recipe.seed, recipe.data.name, recipe.encoder.dim, recipe.fit.epochs) == (3, "digits", 9, 2)
    assert recipe.refit == RefitSpec(head="mda", dim=4, components=2)
    assert (recipe.data.test, recipe.encoder.kind, recipe.fit.lr) == (0.2, "six-conv", 1e-3)


@pytest.mark.parametrize("name", recipe_names())
def test_dumped_recipe_is_the_same_recipe(name: str) -> None:
    _, recipe = load_recipe(name)

    tree = tomllib.loads(dump_recipe(recipe))

    assert parse_recipe(tree) == recipe
    assert tree["fit"]["momentum"] == recipe.fit.momentum  # a default, spelled out


def test_dumped_recipe_keeps_lists_and_leaves_out_what_is_not_set(file: Path) -> None:
    _, recipe = load_recipe(str(file), ["encoder.kind=mlp", "encoder.hidden=[16, 8]"])

    tree = tomllib.loads(dump_recipe(recipe))

    assert tree["encoder"]["hidden"] == [16, 8]
    assert parse_recipe(tree) == recipe


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("fit.lr=0.01", 0.01),
        ("fit.lr=1", 1.0),
        ("fit.epochs=7", 7),
        ("fit.flip=true", True),
        ("fit.optimizer=sgd", "sgd"),
        ('fit.optimizer="sgd"', "sgd"),
        (" fit.optimizer = sgd ", "sgd"),
        ("encoder.hidden=[3, 4]", (3, 4)),
        ("refit.components=bic", "bic"),
        ("description=two words = three", "two words = three"),
        ("seed=0", 0),
    ],
)
def test_override_replaces_one_value(file: Path, override: str, value: object) -> None:
    _, recipe = load_recipe(str(file), [override])

    changed: object = recipe
    for key in override.partition("=")[0].strip().split("."):
        changed = getattr(changed, key)
    assert changed == value
    assert type(changed) is type(value)


def test_override_may_start_a_section(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)

    _, recipe = load_recipe(str(file), ["refit.dim=4", "refit.components=3"])

    assert recipe.refit == RefitSpec(dim=4, components=3)


def test_last_override_wins(file: Path) -> None:
    assert load_recipe(str(file), ["seed=4", "seed=5"])[1].seed == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit.lr", "an override must look like fit.lr=0.01, got 'fit.lr'"),
        ("=3", "an override must look like fit.lr=0.01, got '=3'"),
        ("data.name.x=3", "data.name.x must be a key of the recipe, got a path through the value 'name'"),
    ],
)
def test_override_of_another_form_is_refused(file: Path, override: str, message: str) -> None:
    assert message_of(file, override) == message


def test_unknown_recipe_lists_the_choices() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits-xyz")

    choices = ", ".join(recipe_names())
    assert str(caught.value) == f"recipe must be a TOML file or one of {choices}, got 'digits-xyz'"


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert message_of(tmp_path / "none.toml").endswith(f"got {str(tmp_path / 'none.toml')!r}")


def test_broken_toml_names_the_file_and_the_line(file: Path) -> None:
    file.write_text("seed = 3\nname = \n")

    assert message_of(file).startswith(f"{file} must be valid TOML, got ")
    assert "line 2" in message_of(file)


def test_file_that_is_no_text_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")

    assert message_of(file).startswith(f"{file} must be valid TOML, got ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "fit.epoch=3",
            "fit.epoch must be one of the keys epochs, batch_size, optimizer, lr, momentum, weight_decay, schedule, "
            "ema_decay, crop_padding, flip, cutout, crop_scale, scales, freeze_epochs, last_blocks, frozen_blocks, "
            "layer_decay, batch_norm, train_depthwise, precision, compile, got an unknown key (did you mean 'epochs'?) "
            "with the value 3",
        ),
        (
            "refit.k=3",
            "refit.k must be one of the keys head, features, dim, components, max_components, covariance, tied, "
            "shrinkage, restarts, ridge, got an unknown key with the value 3",
        ),
        (
            "fitt.lr=3",
            "fitt must be one of the keys description, seed, data, encoder, head, loss, fit, refit, "
            "calibration, "
            "got an unknown key (did you mean 'fit'?) with the value {'lr': 3}",
        ),
        ("fit.epochs=many", "fit.epochs must be a valid integer, got 'many'"),
        ("fit.epochs=2.0", "fit.epochs must be a valid integer, got 2.0"),
        ("fit.epochs=true", "fit.epochs must be a valid integer, got True"),
        ("fit.epochs=0", "fit.epochs must be greater than or equal to 1, got 0"),
        ("fit.batch_size=1", "fit.batch_size must be greater than or equal to 2, got 1"),
        ("fit.lr=0", "fit.lr must be greater than 0, got 0"),
        ("fit.lr=inf", "fit.lr must be a finite number, got inf"),
        ("fit.lr=nan", "fit.lr must be a finite number, got nan"),
        ("fit.lr='0.1'", "fit.lr must be a valid number, got '0.1'"),
        ("fit.flip=1", "fit.flip must be a valid boolean, got 1"),
        ("fit.weight_decay=inf", "fit.weight_decay must be a finite number, got inf"),
        ("fit.momentum=1", "fit.momentum must be less than 1, got 1"),
        ("fit.ema_decay=1", "fit.ema_decay must be less than 1, got 1"),
        ("fit.crop_scale=0", "fit.crop_scale must be greater than 0, got 0"),
        ("fit.layer_decay=1.5", "fit.layer_decay must be less than or equal to 1, got 1.5"),
        ("fit.freeze_epochs=3", "fit.freeze_epochs must be at most fit.epochs (2), got 3"),
        ("fit.batch_norm=frozen", "fit.batch_norm must be one of 'train' or 'eval', got 'frozen'"),
        (
            "fit.train_depthwise=false",
            "fit.train_depthwise must be true for the encoder six-conv, got false: it is for fine-tuning a backbone",
        ),
        (
            "fit.layer_decay=0.9",
            "fit.layer_decay must be 1.0 for the encoder six-conv, got 0.9: it is for fine-tuning a backbone",
        ),
        (
            "encoder.frozen=false",
            "encoder.frozen must be true for the encoder six-conv, which is no backbone, got false",
        ),
        ("fit.optimizer=lion", "fit.optimizer must be one of 'adam', 'adamw' or 'sgd', got 'lion'"),
        ("data.channels=2", "data.channels must be one of 1 or 3, got 2"),
        ("data.size=3", "data.size must be greater than or equal to 4, got 3"),
        ("data.validation=1", "data.validation must be less than 1, got 1"),
        ("data.test=0", "data.test must be greater than 0, got 0"),
        (
            "data.name=imagenet",
            "data.name must be one of 'digits', 'mnist', 'fashion-mnist', 'cifar10', 'cifar100' or 'folder', "
            "got 'imagenet'",
        ),
        ("data=digits", "data must be a section of keys, got 'digits'"),
        ("refit=none", "refit must be a section of keys, got 'none'"),
        ("encoder.hidden=[16, 0]", "encoder.hidden must be greater than or equal to 1, got 0"),
        (
            "encoder.kind=vit",
            "encoder.kind must be one of 'six-conv', 'two-conv', 'mlp', 'linear', 'none', 'efficientnet-lite0', "
            "'efficientnet-lite1', 'efficientnet-lite2', 'resnet18', 'vit-s16' or 'timm:' and the name of a network of "
            "timm, got 'vit'",
        ),
        (
            "encoder.kind=timm:resnet10",
            "encoder.kind must be timm: and the name of a network of timm, got timm:resnet10 (did you mean resnet10t, "
            "resnet101, resnet101s, resnet101d, resnet101c?)",
        ),
        ("head.kind=qda", "head.kind must be one of 'lda', 'mda', 'softmax' or 'svm', got 'qda'"),
        ("head.covariance=tied", "head.covariance must be one of 'spherical', 'diagonal' or 'full', got 'tied'"),
        ("refit.components=0", "refit.components must be greater than or equal to 1 or one of 'bic', got 0"),
        ("refit.components=aic", "refit.components must be a valid integer or one of 'bic', got 'aic'"),
        ("seed=-1", "seed must be greater than or equal to 0, got -1"),
    ],
)
def test_schema_names_the_key_the_rule_and_the_value(file: Path, override: str, message: str) -> None:
    assert message_of(file, override) == message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head.components=2"], "head.components must be 1 for the head lda, got 2"),
        (["loss.kind=em-dnll"], "loss.kind em-dnll must go with the head mda, got lda"),
        (["head.kind=softmax"], "loss.kind dnll must go with the head lda or mda, got softmax"),
        (["head.kind=svm", "loss.kind=nll"], "loss.kind nll must go with the head lda or mda, got svm"),
        (["head.kind=svm", "loss.kind=lda"], "loss.kind lda must go with the head lda or mda, got svm"),
        (["head.kind=svm", "loss.kind=poisson-nll"], "loss.kind poisson-nll must go with the head lda or mda, got svm"),
        (["loss.kind=hinge"], "loss.kind hinge must go with the head softmax or svm, got lda"),
        (["encoder.kind=mlp"], "encoder.hidden must name at least one layer for the encoder mlp, got none"),
        (
            ["encoder.kind=linear", "fit.scales=[0.5, 1]"],
            "fit.scales must be [1.0] for the encoder linear, got [0.5, 1.0]",
        ),
        (["refit.features=output"], "refit.dim must be given for pooled features and only there, got 4"),
        (["refit.head=lda"], "refit.components must be 1 for the head lda, got 2"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(file: Path, overrides: list[str], message: str) -> None:
    assert message_of(file, *overrides) == message


def test_pooled_features_need_a_dimension(file: Path) -> None:
    file.write_text(SMALL + "[refit]\ncomponents = 2\n")

    assert message_of(file) == "refit.dim must be given for pooled features and only there, got None"


def test_fisher_loss_needs_a_refit(file: Path) -> None:
    file.write_text(SMALL)

    assert (
        message_of(file, "loss.kind=fisher") == "loss.kind fisher must go with a [refit], which fits the head, got none"
    )


def test_missing_keys_are_named_together(file: Path) -> None:
    file.write_text('[data]\nname = "digits"\n[encoder]\n')

    assert message_of(file) == (
        "head must be given, got nothing; loss must be given, got nothing; fit must be given, got nothing"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["head.kind=mda", "head.components=3", "loss.kind=em-dnll"],
        ["head.kind=softmax", "loss.kind=cross-entropy"],
        ["head.kind=svm", "loss.kind=hinge"],
        ["head.kind=softmax", "loss.kind=logistic"],
        ["loss.kind=fisher"],
        ["refit.head=lda", "refit.components=1"],
    ],
)
def test_choices_that_go_together_are_accepted(file: Path, overrides: list[str]) -> None:
    assert isinstance(load_recipe(str(file), overrides)[1], Recipe)


def test_recipe_cannot_be_changed(file: Path) -> None:
    _, recipe = load_recipe(str(file))

    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 4  # type: ignore[misc]


# Notes


def test_notes_of_a_recipe_are_none_of_its_settings(file: Path) -> None:
    _, plain = load_recipe(str(file))
    file.write_text(file.read_text() + '[notes]\npublished = "90.1"\nremark = "No more epochs were tried."\n')

    _, noted = load_recipe(str(file))

    assert noted == plain
    assert "notes" not in dump_recipe(noted)


def test_recipes_of_the_project_have_notes() -> None:
    assert notes_of("cifar10-lda").published == "90.42"
    assert notes_of("cifar10-lda").remark.startswith("With random squares")
    assert all("\n" not in notes_of(name).remark for name in recipe_names())
    assert notes_of("a-recipe-of-mine") == Notes()


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ("[notes]\nremarks = 1", "notes.remarks must be one of the keys published, differs, remark, got an unknown key "
         "(did you mean 'remark'?) with the value 1"),
        ("[notes]\npublished = 90.1", "notes.published must be a valid string, got 90.1"),
    ],
)  # fmt: skip
def test_unknown_notes_are_refused(file: Path, notes: str, message: str) -> None:
    file.write_text(f"{file.read_text()}{notes}\n")

    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file))
    assert str(caught.value) == message


def test_recorded_recipe_without_a_split_seed_was_cut_by_its_seed() -> None:
    tree = tomllib.loads(SMALL)

    assert (parse_recipe(tree).seed, parse_recipe(tree).data.split_seed) == (3, 0)
    assert recorded_recipe(tree).data.split_seed == 3
    assert recorded_recipe({**tree, "data": {"name": "digits", "split_seed": 1}}).data.split_seed == 1
    assert recorded_recipe(parse_recipe(tree).model_dump(mode="json", exclude_none=True)) == parse_recipe(tree)
    with pytest.raises(RecipeError, match=r"^data\.name must be given, got nothing$"):
        recorded_recipe({name: part for name, part in tree.items() if name != "data"})


# The ridge that was called a floor


def refit_of(**keys: object) -> dict[str, Any]:
    """A recipe's tree with a refit, as a run of before or of now holds it."""
    tree = load_recipe("fashion-mnist-mda-best")[1].model_dump(mode="json", exclude_none=True)
    tree["refit"] = {"dim": 32, **keys}
    return tree


def test_recipe_of_an_old_run_may_call_the_ridge_a_variance_floor() -> None:
    old, new = (parse_recipe(refit_of(**{key: 0.25})) for key in ("variance_floor", "ridge"))

    assert old == new
    assert old.refit is not None
    assert old.refit.ridge == 0.25
    assert "ridge = 0.25" in dump_recipe(old)
    assert "variance_floor" not in dump_recipe(old)


def test_ridge_under_both_names_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"^refit\.variance_floor must be one of the keys .*ridge, got an unknown key"
    ):
        parse_recipe(refit_of(variance_floor=0.1, ridge=0.1))


def test_ridge_that_breaks_its_rule_is_named() -> None:
    with pytest.raises(RecipeError, match=r"^refit\.ridge must be greater than 0, got 0$"):
        parse_recipe(refit_of(ridge=0))


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ([], 224),
        (["encoder.kind=efficientnet-lite2"], 260),
        (["encoder.kind=timm:resnet10t"], 176),
        (["encoder.side=128"], 128),
    ],
)
def test_photos_are_read_in_the_size_that_the_backbone_takes(settings: list[str], side: int) -> None:
    _, recipe = load_recipe("images", settings)

    assert (recipe.data.size, recipe.data.channels) == (side, 3)
