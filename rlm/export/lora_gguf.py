"""A LoRA as a GGUF file, which llama.cpp and Ollama put on a base in a GGUF file.

    manifest = write_lora_gguf(adapter, base, folder, device="cpu", name="my_lora")

Each pair of matrices lies under the name of the weight that it changes, B in the order of that
weight's rows. llama.cpp multiplies by alpha over the rank, one alpha for all; a pair that is
scaled otherwise (rsLoRA, an alpha of its own) has the rest in its B. Before the folder is put in
place llama.cpp, where it is installed, answers with the base and the file, beside torch.
"""

import logging
from pathlib import Path

from rlm import files
from rlm.errors import InputError
from rlm.export import gguf_writer, llama_cpp, modelfile
from rlm.export.merging import write_manifest
from rlm.models import adapters
from rlm.models.lookup import gguf_of, is_whole

logger = logging.getLogger("rlm")

# Settings of a LoRA that are more than two matrices beside a weight.
MORE = ("use_dora", "modules_to_save", "trainable_token_indices", "alora_invocation_tokens",
        "target_parameters", "lora_bias", "fan_in_fan_out", "layer_replication")  # fmt: skip


def write_lora_gguf(
    adapter: Path, base: str, new: Path, *, device: str, name: str, token_ids: bool = False
) -> dict:
    """Write the folder of a LoRA in GGUF and prove it; return its manifest.

    token_ids: the base's file is for token ids alone, and there is no Modelfile.
    """
    from rlm.export import gguf_proof, proof
    from rlm.export.gguf import MODELFILE, context_tokens, opened
    from rlm.models.loading import load_base

    check_lora(adapter)
    source = opened(adapter, base, device=device, token_ids=token_ids, merge=False)
    new.mkdir()
    file = new / f"{name}-lora.gguf"
    pairs = write(source.network, file, name)
    found: dict = {"prompts": len(source.questions), "pairs": pairs}
    base_file = gguf_of(base)
    beside = base_file.name if base_file else "base.gguf"
    if llama_cpp.installed():
        rested = new / "base.gguf"  # of a base that is no GGUF file, for the proof alone
        try:
            if base_file is None:
                plain, _ = load_base(base, device="cpu", dtype="float32")
                gguf_writer.write(plain, source.vocabulary, rested, kind="F32", name=name)
                del plain
            exact = base_file is None
            found["llama_cpp"] = gguf_proof.prove(
                base_file or rested, source.live, source, exact=exact, lora=file
            )
        except proof.ProofError as error:
            raise proof.ProofError(
                f"the LoRA in GGUF is not the adapter {adapter}: {error}; nothing was written"
            ) from None
        finally:
            rested.unlink(missing_ok=True)
    else:
        logger.warning("llama.cpp itself was not asked: pip install -e '.[llamacpp]' brings it")
    vocabulary = source.vocabulary
    if source.texts:
        told = modelfile.write(
            beside, source.tokenizer, source.manifest, lora=file.name, add_bos=vocabulary.add_bos,
            ends=[vocabulary.tokens[i] for i in vocabulary.ends],
            context_tokens=context_tokens(source.network.config),
        )  # fmt: skip
        files.write_text(new / MODELFILE, told)
    export: dict = {"kind": "lora-gguf", "file": file.name, "base_file": beside, "proof": found}
    if token_ids:
        export["token_ids"] = True
    return write_manifest(adapter, base, new, export)


def check_lora(adapter: Path) -> None:
    """InputError in one line for an adapter that is more than pairs of matrices."""
    if is_whole(str(adapter)):
        raise InputError(f"--adapter {adapter}: a whole model, no LoRA; use the kind gguf")
    config = files.read_object(adapter / adapters.CONFIG)
    if config.get("peft_type") != "LORA":
        raise InputError(f"--adapter {adapter}: of the kind {config.get('peft_type')}; LORA alone "
                         "has a form in GGUF: use the kind gguf, which merges it")  # fmt: skip
    if found := next((name for name in MORE if config.get(name)), None):
        raise InputError(f"--adapter {adapter}: has {found}, which GGUF has no place for; use the "
                         "kind gguf, which merges it")  # fmt: skip


def write(model, path: Path, name: str) -> int:
    """Write a PeftModel's LoRA as a file; return the number of pairs."""
    import gguf
    import torch

    config = model.config
    names = gguf.get_tensor_name_map(gguf_writer.architecture(config), config.num_hidden_layers)
    lora = model.peft_config[model.active_adapter]
    writer = gguf.GGUFWriter(path, gguf_writer.FAMILIES[config.model_type])
    count = 0
    try:
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(lora.lora_alpha))
        for place, layer in model.get_base_model().named_modules():
            if not getattr(layer, "lora_A", None):
                continue
            key = model.active_adapter
            if key not in layer.lora_A:
                raise InputError(f"the LoRA changes {place}, which GGUF has no pair for; use the "
                                 "kind gguf, which merges it")  # fmt: skip
            down, up = (part[key].weight.detach().float().cpu() for part in
                        (layer.lora_A, layer.lora_B))  # fmt: skip
            up = up * (layer.scaling[key] * len(down) / lora.lora_alpha)
            up = gguf_writer.ordered(f"{place}.weight", up, config)
            target = gguf_writer.file_name(names, f"{place}.weight")
            for half, values in (("lora_a", down), ("lora_b", up)):
                array = torch.Tensor.contiguous(values).numpy()
                writer.add_tensor(f"{target}.{half}", array)
            count += 1
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return count
