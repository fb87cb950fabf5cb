"""A training step on a device that is none: every tensor lies there, and the host waits for it only where it must."""

from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from device_steps import RECIPES, arguments, made
from pretend_device import DEVICE, OnDevice, PretendDevice, to_device

from flip_ctr.train.loop.optimizer import make_optimizer
from flip_ctr.train.loop.step import FiniteWatch, TrainingStep


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_stays_on_its_device(name, monkeypatch):
    options, in_steps, in_windows = RECIPES[name]
    model, batches = made(name, options)
    args, accelerator = arguments(options), Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "device", property(lambda self: DEVICE))
    before = [weight.detach().clone() for weight in model.parameters()]
    with PretendDevice() as device:
        step = TrainingStep(accelerator, to_device(model), make_optimizer(model, args, DEVICE), args)
        finite, counted = FiniteWatch(accelerator), 0
        for number, group in enumerate(step.windows(([batch] for batch in batches), len(batches))):
            model.train()
            for output in step.backward(group):
                assert all(isinstance(value, OnDevice) for value in output.values())
                finite.watch(output["loss"], number + 1)
            assert isinstance(step.update(), OnDevice)
            counted += 1
            if number == 1:  # what is brought to the device once is there
                device.waits.clear()
                counted = 0
        waits = Counter(device.waits)
        model.eval()
        with torch.no_grad():  # which looks at more, but at no tensor of the host
            inputs = {one: values.to(DEVICE) for one, values in batches[0].items() if one != "mlm_scores"}
            assert isinstance(model(**inputs)["logits" if "strategy" in options else "loss"], OnDevice)
    windows = counted // args.plm_every if in_windows else 0
    expected = Counter({where: counted * times for where, times in in_steps.items()})
    expected.update({where: windows * times for where, times in in_windows.items()})
    assert waits == expected
    assert not all(torch.equal(one, weight.held) for one, weight in zip(before, model.parameters()))


def test_what_the_pretended_device_sees():
    """Else the other test would say nothing."""
    with PretendDevice() as device:
        values = torch.arange(6.0).to(DEVICE, non_blocking=True).view(2, 3)
        assert (values * 2 + 1).sum(1).is_meta and not device.waits
        with pytest.raises(RuntimeError, match="add.Tensor of tensors on the device, and of others, .3,., that are"):
            values + torch.zeros(3)
        assert values.sum().item() == 15 and values.tolist() == [[0, 1, 2], [3, 4, 5]] and values.cpu().sum() == 15
        assert values[:, [0, 2]].shape == (2, 2) and len(values[values > 2]) == 3 and len(values.nonzero()) == 5
        values[values > 4] = 0.0  # a number is filled in where the mask is
        torch.tensor([1.0], device=DEVICE) + torch.zeros(1, device=DEVICE)
    assert sum(device.waits.values()) == 7
