"""Every backbone passes the shared battery of tests."""

import pytest

from tests.helpers.batteries.backbone import BackboneBattery


class TestSwin(BackboneBattery):
    name = "D2SwinTransformer"
    options = {  # noqa: RUF012
        "MODEL.SWIN.EMBED_DIM": 8,
        "MODEL.SWIN.DEPTHS": [2, 1, 1, 1],
        "MODEL.SWIN.NUM_HEADS": [1, 1, 2, 2],
        "MODEL.SWIN.WINDOW_SIZE": 2,
        "MODEL.SWIN.DROP_PATH_RATE": 0.0,
    }


class TestTimm(BackboneBattery):
    name = "build_timm_backbone"
    options = {"MODEL.TIMM.NAME": "tf_efficientnet_lite0"}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _timm(self):
        pytest.importorskip("timm")


class TestResNet(BackboneBattery):
    name = "build_resnet_backbone"
    options = {  # noqa: RUF012
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    }


class TestViT(BackboneBattery):
    name = "build_vit_backbone"
    options = {"MODEL.VIT.NAME": "test_vit", "MODEL.VIT.OUT_CHANNELS": 8}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _timm(self):
        pytest.importorskip("timm")


class TestFrozenViTWithPatchesOf8Pixels(TestViT):
    options = TestViT.options | {"MODEL.VIT.PATCH_SIZE": 8, "MODEL.VIT.FREEZE_AT": -1}
    fixed = ("vit.",)
