"""MIR in a loop of one's own: ``python -m examples.training.plain_loop``. Also under torchrun, with DDP or FSDP."""

from __future__ import annotations

import torch

from examples.training.small_vlm import SmallVLM, encode
from mir_plugin import MirResult, embedded_samples, measure_live, metrics_of, saturated

N_STEPS, EVERY = 20, 10


def main() -> list[MirResult]:
    """Train a little; the results."""
    torch.manual_seed(0)
    model = SmallVLM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pairs, samples = embedded_samples(20, seed=1).samples, embedded_samples(8)
    results: list[MirResult] = []
    for step in range(1, N_STEPS + 1):
        inputs, vision, _ = encode([pairs[step % len(pairs)]])
        _, loss = model(**inputs, targets=inputs["input_ids"].masked_fill(vision, -100))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0:
            results.append(measure_live(model, None, samples, adapter=encode, checkpoint=f"step-{step}"))
            print(step, f"loss {loss.item():.3f}", f"MIR {metrics_of(results[-1])['mir/mir']:.4f}")
            if saturated(results, patience=3):
                break
    return results


if __name__ == "__main__":
    main()
