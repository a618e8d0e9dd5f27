"""The learning rate: its peak by the settings, or else by the model's width; then its schedule."""

# Peaks for a LoRA at WIDTH; a wider model takes a lower one. That the rate of a LoRA is about ten
# times that of full tuning, hardly depends on the rank and falls with the width as
# (2000 / width) ** 0.78 was found by Schulman et al., "LoRA Without Regret" (2025), for models of
# Llama; the peaks are those of published runs at this width.
WIDTH = 896
PEAKS = {"sft": 5e-4, "grpo": 5e-5}
POWER = 0.78
FULL = 0.1  # of a LoRA's rate where all weights learn


def by_width(script: str, width: int, *, full: bool = False) -> float:
    """Return the peak rate of a stage (a key of PEAKS) for a model of that hidden size.

    full: all weights learn.

    >>> by_width("sft", 896), by_width("grpo", 3584), by_width("sft", 896, full=True)
    (0.0005, 1.7e-05, 5e-05)
    """
    peak = PEAKS[script] * (FULL if full else 1.0)
    return float(f"{peak * (WIDTH / width) ** POWER:.1e}")


def peak_rate(settings, model) -> float:
    """Return the rate that was set, or that of the model's width."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    return by_width(settings.script, width_of(model), full=settings.train == "full")


def told(settings, model) -> str:
    """Return the peak rate in a line, with where it comes from."""
    rate = f"learning rate {peak_rate(settings, model):g}"
    if settings.train == "full":
        rate += " for all weights, which want about a tenth of a LoRA's"
    if settings.learning_rate is not None:
        return rate
    return f"{rate}, by the model's width of {width_of(model)}; --learning-rate sets another"


def width_of(model) -> int:
    """Return the hidden size of a transformers or PEFT model."""
    return int(model.get_input_embeddings().weight.shape[-1])


def learning_rate(step: int, last: int, peak: float, settings) -> float:
    """Return the rate of a step, counted from 1: a linear rise, then constant or a linear fall."""
    rise = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
    fall = 1.0 - (step - 1) / last if settings.lr_schedule == "linear" else 1.0
    return peak * rise * fall
