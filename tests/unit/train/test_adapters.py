"""What an adapter says of its base."""

import json

import pytest

from flip_ctr.train.models.lora import ADAPTER_CONFIG, load_adapter


@pytest.mark.parametrize("base", ["../base", "a/../../base", "/base", "..\\base", ".."])
def test_an_adapter_names_no_folder_elsewhere(tmp_path, base):
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(ValueError, match="adapter_config.json names the base .*name it with --base_model_name_or_path"):
        load_adapter(str(tmp_path))
