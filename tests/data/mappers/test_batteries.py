"""Every training mapper passes the shared battery of tests."""

from tests.helpers.batteries.mapper import MapperBattery


class TestSemantic(MapperBattery):
    name = "mask_former_semantic"
    kind = "semantic"


class TestPanoptic(MapperBattery):
    name = "mask_former_panoptic"
    kind = "panoptic"


class TestDETRPanoptic(MapperBattery):
    name = "detr_panoptic"
    kind = "panoptic"


class TestInstance(MapperBattery):
    name = "mask_former_instance"
    kind = "instance"


LSJ = {"INPUT.IMAGE_SIZE": 64, "INPUT.MIN_SCALE": 0.5}


class TestPanopticLSJ(MapperBattery):
    name = "coco_panoptic_lsj"
    kind = "panoptic"
    options = LSJ


class TestInstanceLSJ(MapperBattery):
    name = "coco_instance_lsj"
    kind = "instance"
    options = LSJ


class TestSemanticLSJ(MapperBattery):
    name = "mask_former_semantic_lsj"
    kind = "semantic"
    options = LSJ
