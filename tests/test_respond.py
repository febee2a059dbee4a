import numpy as np
import orjson
import pytest

from serving.bundle import Manifest
from serving.errors import ImageError, ImageTooLarge
from serving.held_out import HeldOut
from serving.parameters import Accept, Options
from serving.respond import encode, respond_alone, respond_each, significant

COMMON = {
    "name": "toy",
    "version": 3,
    "labels": ("cat", "dog", "eel"),
    "input": {"channels": 1, "height": 2, "width": 2},
    "recipe": {},
    "dataset": {"name": "made-up", "splits": {}, "fingerprint": "0" * 64},
    "metrics": {},
    "versions": {},
    "sha256": {},
}
MDA = Manifest(
    **COMMON,
    head={"kind": "mda", "classes": 3, "dim": 2, "components": 2},
    outputs=("posterior", "responsibilities", "log_density", "features"),
)
SOFTMAX = Manifest(
    **COMMON, head={"kind": "softmax", "classes": 3, "dim": 2, "components": 1}, outputs=("posterior", "features")
)
OUTPUTS = {
    "posterior": np.array([[0.2, 0.7, 0.1]], dtype=np.float32),
    "responsibilities": np.array([[[0.5, 0.5], [0.25, 0.75], [1, 0]]], dtype=np.float32),
    "log_density": np.array([-1.93], dtype=np.float32),
    "features": np.array([[1.5, -2]], dtype=np.float32),
}
TYPICAL = Manifest(
    **COMMON,
    head={"kind": "mda", "classes": 3, "dim": 2, "components": 2},
    outputs=("posterior", "responsibilities", "log_density", "typicality_score", "features"),
    held_out={"images": 9, "by": "split"},
    priors=(0.5, 0.25, 0.25),
    component_names={"dog": {1: "sitting"}},
)
SCORED = OUTPUTS | {"typicality_score": np.array([0.65], dtype=np.float32)}
NINE = HeldOut(  # their scores, and the probabilities of their labels, are 0.1 to 0.9
    np.arange(1, 10, dtype=np.float32) / 10,
    np.arange(1, 10, dtype=np.float32) / 10,
    np.zeros(9, np.int64),
    np.zeros(3, np.int64),
)


def test_the_answer_is_the_documented_one() -> None:
    [answer] = encode(OUTPUTS, MDA, [Options(2, frozenset({"probabilities", "components", "features"}))])

    dog = {"label": "dog", "probability": 0.7, "component": 1, "component_probability": 0.75}
    cat = {"label": "cat", "probability": 0.2, "component": 0, "component_probability": 0.5}
    assert answer == {
        **dog,
        "top_k": [dog, cat],
        "probabilities": {"cat": 0.2, "dog": 0.7, "eel": 0.1},
        "components": {"cat": [0.5, 0.5], "dog": [0.25, 0.75], "eel": [1.0, 0.0]},
        "log_density": -1.93,
        "features": [1.5, -2.0],
        "model": {"name": "toy", "version": "3"},
    }
    assert list(answer)[:5] == ["label", "probability", "component", "component_probability", "top_k"]


def test_what_is_answered_without_held_out_images_is_what_has_always_been_byte_for_byte() -> None:
    [answer] = encode(OUTPUTS, MDA, [Options(2)])

    assert orjson.dumps(answer) == (
        b'{"label":"dog","probability":0.7,"component":1,"component_probability":0.75,"top_k":[{"label":"dog",'
        b'"probability":0.7,"component":1,"component_probability":0.75},{"label":"cat","probability":0.2,"component":0,'
        b'"component_probability":0.5}],"probabilities":{"cat":0.2,"dog":0.7,"eel":0.1},"components":{"cat":[0.5,0.5],'
        b'"dog":[0.25,0.75],"eel":[1.0,0.0]},"log_density":-1.93,"model":{"name":"toy","version":"3"}}'
    )


def test_the_answer_of_a_bundle_with_held_out_images_is_the_documented_one() -> None:
    options = Options(2, frozenset({"features"}), coverage=0.8, accept=Accept(probability=0.9))

    [answer] = encode(SCORED, TYPICAL, [options], NINE)
    dog = {
        "label": "dog",
        "probability": 0.7,
        "component": 1,
        "component_name": "sitting",
        "component_probability": 0.75,
    }
    cat = {"label": "cat", "probability": 0.2, "component": 0, "component_probability": 0.5}
    assert list(answer.items()) == list(
        {
            **dog,
            "top_k": [dog, cat],
            "log_density": -1.93,
            "typicality": 0.7,  # 6 of 9 scores are no greater than 0.65: (1 + 6) / (9 + 1)
            "labels_at": {"coverage": 0.8, "set": ["dog", "cat"]},  # the 8th of 9 from above is 0.2
            "flags": ["typicality_too_coarse", "uncertain"],
            "features": [1.5, -2.0],
            "model": {"name": "toy", "version": "3"},
        }.items()
    )
    assert list(answer["top_k"][0]) == list(dog)


def test_unless_it_is_asked_for_an_answer_has_no_set_and_nobody_is_uncertain() -> None:
    [answer] = encode(SCORED, TYPICAL, [Options(1)], NINE)

    assert answer["typicality"] == 0.7
    assert answer["flags"] == ["typicality_too_coarse"]
    assert not {"labels_at", "typicality_score", "features"} & set(answer)


def test_other_priors_change_the_posterior_and_nothing_else() -> None:
    priors = (("cat", 0.8), ("dog", 0.1), ("eel", 0.1))  # times 1.6, 0.4, 0.4

    plain, moved = encode(
        {name: np.repeat(values, 2, 0) for name, values in SCORED.items()},
        TYPICAL,
        [Options(3), Options(3, priors=priors)],
        NINE,
    )
    assert moved["probabilities"] == {"cat": 0.5, "dog": 0.4375, "eel": 0.0625}
    assert [one["label"] for one in moved["top_k"]] == ["cat", "dog", "eel"]
    assert (moved["label"], moved["probability"]) == ("cat", 0.5)
    for name in ("components", "log_density", "typicality"):
        assert moved[name] == plain[name]


def test_an_answer_may_be_accepted_without_held_out_images() -> None:
    good, bad = (encode(OUTPUTS, MDA, [Options(accept=Accept(probability=p))])[0] for p in (0.7, 0.71))

    assert (good["flags"], bad["flags"]) == ([], ["uncertain"])


def test_a_softmax_answer_has_neither_components_nor_density() -> None:
    [answer] = encode({name: OUTPUTS[name] for name in SOFTMAX.outputs}, SOFTMAX, [Options(top_k=1)])

    assert answer == {
        "label": "dog",
        "probability": 0.7,
        "top_k": [{"label": "dog", "probability": 0.7}],
        "probabilities": {"cat": 0.2, "dog": 0.7, "eel": 0.1},
        "model": {"name": "toy", "version": "3"},
    }


def test_top_k_beyond_the_classes_gives_all_and_ties_keep_their_order() -> None:
    tied = {**OUTPUTS, "posterior": np.array([[0.4, 0.2, 0.4]])}

    [answer] = encode(tied, MDA, [Options(top_k=99, returns=frozenset())])
    assert [entry["label"] for entry in answer["top_k"]] == ["cat", "eel", "dog"]
    assert not {"probabilities", "components", "features"} & set(answer)


@pytest.mark.parametrize("exponent", [-40, -24, -9, -1, 0, 3, 8, 30])
def test_numbers_have_seven_significant_digits(exponent: int) -> None:
    values = np.random.default_rng(0).normal(size=500) * 10.0**exponent

    assert significant(values).tolist() == [float(f"{value:.7g}") for value in values]
    assert significant(values[:5, None]).tolist() == significant(values[:, None])[:5].tolist()


def test_float32_survives_rounding_to_its_precision() -> None:
    values = np.random.default_rng(0).uniform(size=500).astype(np.float32)

    assert np.abs(significant(values) / values - 1).max() < 1e-6
    assert max(len(orjson.dumps(value)) for value in significant(values).tolist()) <= 12


def test_zero_and_what_is_not_finite_stay_themselves() -> None:
    values = np.array([0.0, -np.inf, np.inf, np.nan])

    assert np.array_equal(significant(values), values, equal_nan=True)


def test_one_bare_image_answers_by_itself_and_its_error_sets_the_status() -> None:
    assert respond_alone([{"label": "dog"}]) == (200, {"label": "dog"})
    assert respond_alone([ImageTooLarge("too big")]) == (
        413,
        {"error": {"code": "image_too_large", "message": "too big"}},
    )


def test_errors_among_several_instances_take_their_places_only() -> None:
    status, body = respond_each([{"label": "dog"}, ImageError("broken")])

    error = {"error": {"code": "undecodable_image", "message": "broken"}}
    assert (status, body) == (200, {"predictions": [{"label": "dog"}, error]})


def test_a_lone_instance_sets_the_status_too() -> None:
    assert respond_each([ImageError("broken")])[0] == 400
