"""Every mask-classification head passes the shared battery of tests."""

from tests.helpers.batteries.head import HeadBattery


class TestMaskFormerHead(HeadBattery):
    name = "MaskFormerHead"
