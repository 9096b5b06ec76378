"""Commands: one file for each, and the parts that they share.

A command's file has the same parts in the same order: a docstring, which is its ``--help``; a
frozen dataclass with its arguments; ``parse(argv)``, which fills the dataclass from the command
line; functions that do the work; and ``main(argv)``, which returns the exit code. The scripts in
``tools/`` and ``demo/demo.py`` only call ``main``.

=====================  =============================================================================
command                file
=====================  =============================================================================
train, evaluate        ``train``; ``custom_data`` for a dataset of files and folders
predict                ``predict`` (images, videos, a camera), ``predict_folder`` (many processes)
check and draw data    ``check_dataset``, ``visualize_data``
convert weights        ``convert_hf_maskformer``, ``convert_swin``, ``convert_timm``,
                       ``convert_torchvision``
publish a model        ``publish_weights``, ``export``
evaluate PQ            ``evaluate_pq``
=====================  =============================================================================

Shared by all: ``command`` (parser, ``--plugin``, errors, exit code). Shared by those that predict:
``options``, ``prediction``, ``run``, ``media``, ``output_files``, ``dataset_ids`` and ``ranks``.
Shared by the converters of backbones: ``backbone_conversion``.
"""
