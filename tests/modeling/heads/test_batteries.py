"""Every mask-classification head passes the battery."""

from tests.helpers.batteries.head import HeadBattery


class TestMaskFormerHead(HeadBattery):
    name = "MaskFormerHead"
