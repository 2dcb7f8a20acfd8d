"""Compiles the training step of a config for devices that need not be there, and tells what it needs.

    dcjax compile --config=configs/directclr.py --topology=v5e:4x8 --config.batch_size=4096

(or python -m dcjax.compile). No data set is opened and no device of this machine is used. The tables show whether the
step fits, the memory traffic of its parts beside the least that the algorithm needs, the exchanges between devices, and
a bound on its time. A TPU slice takes minutes, a GPU about one; --largest_batch compiles three or more times.

Topologies: v4, v5e, v5p and v6e with the shape of a slice, such as v5e:4x8 (pip install 'jax[tpu]', of JAX's version);
h100:SLICESxHOSTSxGPUS, such as h100:1x4x8 for four hosts of eight (pip install --no-deps jax-cuda12-plugin==VERSION
jax-cuda12-pjrt==VERSION nvidia-cuda-nvcc-cu12, with JAX's version; no driver is needed; an estimate, since no kernel is
chosen by measuring); and cpu:N. On a GPU the step counts as fitting up to 75 % of its memory, which is what JAX takes,
or to the share in XLA_CLIENT_MEM_FRACTION.
"""

import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from dcjax.config import add_config_flags, config_from_flags
from dcjax.runtime import cli
from dcjax.runtime.errors import SettingError
from dcjax.runtime.files import refusing, replace_text

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000


def main(argv: Sequence[str]) -> None:
    """Parses the command line, compiles, prints."""
    parser = cli.Parser(prog="dcjax compile", description=__doc__ or "")
    parser.usage = "dcjax compile --config=FILE[:ARGUMENT] --topology=CHIP:SHAPE [--config.KEY=VALUE ...]"
    parser.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="the devices, such as v5e:4x8")
    parser.add_argument("--largest_batch", action="store_true", help="also find the largest batch that fits")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--dump", metavar="DIR", help="a folder for the text of the compiled program")
    parser.add_argument("--classes", type=int, default=IMAGENET_CLASSES, help="0 without labels (default: 1000)")
    parser.add_argument("--images", type=int, default=IMAGENET_IMAGES, help="training images (default: ImageNet's)")
    add_config_flags(parser)
    config, flags = config_from_flags(parser, argv)
    for name in ("classes", "images"):
        least = 0 if name == "classes" else 1
        if getattr(flags, name) < least:
            raise SettingError(f"--{name} must be at least {least}, found {getattr(flags, name)}")

    # Imported here because the environment decides what JAX loads.
    from dcjax.aot import leave_devices_alone, quiet_plugins

    leave_devices_alone()
    with quiet_plugins():
        from dcjax.aot.chips import CHIPS
        from dcjax.aot.compiled import CompiledStep, compile_for
        from dcjax.aot.largest import largest_batch
        from dcjax.aot.table import as_dict, as_text, of_memory
        from dcjax.aot.topology import topology_hosts, topology_mesh
        from dcjax.runtime.mesh import check_batch
        from dcjax.schema import check_config, with_values

    checked = check_config(config)
    if flags.dump:
        prepare_folder(pathlib.Path(flags.dump))
    mesh = topology_mesh(flags.topology)
    check_batch(checked.batch_size, mesh)
    if checked.devices not in (0, mesh.size):
        raise SettingError(f"devices must be 0, since --topology={flags.topology} names them; found {checked.devices}")
    chip, hosts = CHIPS.get(flags.topology.partition(":")[0]), topology_hosts(flags.topology)
    if flags.largest_batch and chip is None:
        raise SettingError(f"--largest_batch needs a device of known memory, found --topology={flags.topology}")

    def compile_batch(batch_size: int) -> CompiledStep:
        print(f"dcjax: compiling batch_size {batch_size} for {flags.topology}", file=sys.stderr, flush=True)
        step = compile_for(
            check_config(with_values(checked, {"batch_size": batch_size})),
            mesh,
            classes=flags.classes,
            images=flags.images,
            capacity=chip.memory if chip else None,
        )
        if not step.fits:
            needs = f"needs {of_memory(step.used)} of {of_memory(step.capacity or 0)}"
            print(f"dcjax: batch_size {batch_size} does not fit: a device {needs}", file=sys.stderr, flush=True)
        return step

    step = compile_batch(checked.batch_size)
    if flags.dump and step.text:
        path = pathlib.Path(flags.dump) / f"train_step-{flags.topology.replace(':', '-')}.hlo.txt"
        with refusing(path, "--dump", "name another folder"):
            replace_text(path, step.text)
        print(f"dcjax: the compiled program is in {path}", file=sys.stderr, flush=True)
    largest = largest_batch(compile_batch, step) if chip and (flags.largest_batch or not step.fits) else None
    if not step.fits:
        remedy = f"the largest that fits is {largest.batch_size}" if largest else "no smaller batch fits either"
        raise SettingError(
            f"batch_size {step.batch_size} does not fit on {flags.topology}: it needs {of_memory(step.used)} a device, "
            f"which has {of_memory(step.capacity or 0)}; {remedy}"
        )
    found: dict[str, Any] = {"config": flags.config, "topology": flags.topology, **as_dict(step, chip, hosts=hosts)}
    if largest:
        found["largest_batch_size"] = largest.batch_size
    if flags.json:
        with refusing("the output", remedy="free some space"):
            print(json.dumps(found), flush=True)
        return
    print(as_text(step, chip, hosts=hosts))
    if largest:
        print(f"the largest batch that fits: {largest.batch_size} ({of_memory(largest.used)} a device)")


def prepare_folder(folder: pathlib.Path) -> None:
    """Makes the folder for the text of a compiled program, before anything is compiled.

    Raises:
      SettingError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise SettingError(f"--dump {folder} cannot be written to ({reason}); name another folder") from error


if __name__ == "__main__":
    cli.run(main)
