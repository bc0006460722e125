"""A Hugging Face folder's JSON files: translated as transformers computes, or refused with the key, in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from penult.bundle.preprocess import Preprocess
from penult.export.config.hugging_face import preprocess_of, read_folder
from penult.export.errors import ImportModelError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# As microsoft/resnet-50, google/mobilenet_v2_1.0_224 and google/efficientnet-b0 have them; the last with bicubic.
RESNET = {
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": MEAN, "image_std": STD, "resample": 3, "size": 224,
}  # fmt: skip
MOBILENET = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_normalize": True, "do_rescale": True,
    "do_resize": True, "image_mean": [0.5] * 3, "image_processor_type": "MobileNetV2ImageProcessorFast",
    "image_std": [0.5] * 3, "resample": 2, "rescale_factor": 1 / 255, "size": {"shortest_edge": 256},
}  # fmt: skip
EFFICIENTNET = {
    "crop_size": {"height": 289, "width": 289}, "do_center_crop": False, "do_normalize": True, "do_rescale": True,
    "do_resize": True, "image_mean": [0.5] * 3, "image_processor_type": "EfficientNetImageProcessor",
    "image_std": [0.5] * 3, "include_top": True, "resample": 3, "rescale_factor": 1 / 255, "rescale_offset": False,
    "size": {"height": 224, "width": 224},
}  # fmt: skip
VIT = {
    "image_processor_type": "ViTImageProcessor", "image_mean": 0.5, "image_std": 0.5, "resample": 2, "size": 96,
    "do_pad": False, "do_convert_rgb": None,
}  # fmt: skip
HALF, QUARTER = (0.5,) * 3, (0.25,) * 3


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (RESNET, Preprocess(256, 224, "bicubic")),
        (RESNET | {"size": {"shortest_edge": 384}}, Preprocess(384, 384, "bicubic", fit="stretch")),
        (RESNET | {"do_normalize": False}, Preprocess(256, 224, "bicubic", (0.0,) * 3, (1.0,) * 3)),
        (MOBILENET, Preprocess(256, 224, "bilinear", HALF, HALF)),
        (MOBILENET | {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
         Preprocess(256, 224, "bilinear", HALF, HALF)),
        (EFFICIENTNET, Preprocess(224, 224, "bicubic", HALF, QUARTER, "stretch")),
        (EFFICIENTNET | {"include_top": False, "rescale_offset": True, "rescale_factor": 1 / 127.5, "do_normalize": False},
         Preprocess(224, 224, "bicubic", HALF, HALF, "stretch")),
        (EFFICIENTNET | {"do_center_crop": True, "crop_size": 192}, Preprocess(224, 192, "bicubic", HALF, QUARTER, "stretch")),
        (VIT, Preprocess(96, 96, "bilinear", HALF, HALF, "stretch")),
    ],
)  # fmt: skip
def test_preprocessing_is_translated(values: dict[str, Any], wanted: Preprocess, tmp_path: Path):
    """Sizes, crops, filters, mean and deviation are those that the image processor applies."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    found = preprocess_of(tmp_path)
    assert (found.resize, found.crop, found.interpolation, found.fit) == (
        wanted.resize, wanted.crop, wanted.interpolation, wanted.fit,
    )  # fmt: skip
    assert (*found.mean, *found.std) == pytest.approx((*wanted.mean, *wanted.std))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (MOBILENET | {"resample": 0}, "resample is 0, which is nearest"),
        (MOBILENET | {"do_resize": False}, "do_resize is false"),
        (MOBILENET | {"do_center_crop": False}, "do_center_crop is false"),
        (MOBILENET | {"crop_size": {"height": 224, "width": 200}}, "crop_size is"),
        (MOBILENET | {"crop_size": 300}, "crop_size is 300, which is larger than the 256 pixels"),
        (MOBILENET | {"size": {"longest_edge": 256}}, "size is"),
        (MOBILENET | {"do_flip_channel_order": True}, "do_flip_channel_order is true"),
        (MOBILENET | {"image_mean": [0.5]}, "image_mean is [0.5]"),
        (MOBILENET | {"image_std": [0, 0, 0]}, "std above 0"),
        (MOBILENET | {"image_processor_type": "LevitImageProcessor"}, 'image_processor_type is "LevitImageProcessor"'),
        (RESNET | {"do_center_crop": True}, "do_center_crop is true"),
        ({key: value for key, value in RESNET.items() if key != "resample"}, "has no resample"),
        ([], "is not a JSON object"),
    ],
)
def test_other_preprocessing_is_refused_by_its_key(values: Any, key: str, tmp_path: Path):
    """What penult does not compute is refused in one line that names the key and --preprocess."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ImportModelError) as caught:
        preprocess_of(tmp_path)
    assert key in caught.value.message
    assert "\n" not in caught.value.message


CONFIG = {
    "model_type": "resnet", "architectures": ["ResNetForImageClassification"], "id2label": {"0": "ant", "1": "bee"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"model_type": "vit"}, "has a transformer (model_type vit)"),
        ({"model_type": "bert"}, "model_type 'bert' of config.json is none of the CNNs"),
        ({"architectures": ["ResNetModel"]}, "has no classifier"),
        ({"problem_type": "multi_label_classification"}, "penult names one class"),
        ({"num_channels": 1}, "num_channels"),
        ({"id2label": {"0": "ant", "2": "bee"}}, "id2label of"),
    ],
)
def test_other_models_are_refused(change: dict[str, Any], shown: str, tmp_path: Path):
    """Transformers, unknown families, bodies without head and several labels at once are refused in one line."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ImportModelError) as caught:
        read_folder(tmp_path)
    assert shown in caught.value.message
    assert "\n" not in caught.value.message


def test_names(tmp_path: Path):
    """Equal names get their number; those that transformers makes up are none; synsets have descriptions."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG | {"id2label": {"0": "crane", "1": "bee", "2": "crane"}}))
    assert read_folder(tmp_path).labels == ("crane (0)", "bee", "crane (2)")
    config.write_text(json.dumps(CONFIG | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    assert read_folder(tmp_path).labels == ()
    timm = {
        "architecture": "resnet18",
        "pretrained_cfg": {},
        "label_names": ["n1", "n2"],
        "label_descriptions": {"n1": "ant"},
    }
    config.write_text(json.dumps(timm))
    assert (read_folder(tmp_path).labels, read_folder(tmp_path).is_timm) == (("ant", "n2"), True)
