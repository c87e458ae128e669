"""A perceptron on MNIST, trained by real workers in half precision; the last one sends garbage.

torchrun --nproc-per-node 5 docs/train_mnist.py krum    # a rule of krum.AGGREGATORS, or "plain" for DDP alone
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import krum.ddp
from krum.simulation import datasets

BATCH, MOMENTUM, TRAINED = 32, 0.9, 50_000  # the other 10,000 images are held out


class Run:
    """What trains: model, optimizer, scaler and, unless the rule is "plain", the aggregation."""

    def __init__(self, rule: str, garbage: bool):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(784, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
        self.model, self.scaler = DistributedDataParallel(net), torch.amp.GradScaler("cpu")
        self.parts = {"model": net, "scaler": self.scaler}
        if rule == "plain":  # the mean of the workers' momentum is the momentum of their mean
            self.optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=MOMENTUM, dampening=MOMENTUM)
        else:
            self.optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            self.parts["aggregation"] = krum.ddp.aggregate_with(
                self.model, rule, f=1, momentum=MOMENTUM, scaler=self.scaler
            )
        self.parts["optimizer"] = self.optimizer
        if garbage and dist.get_rank() == dist.get_world_size() - 1:
            for parameter in net.parameters():
                parameter.register_hook(lambda gradient: 1e6 * torch.randn_like(gradient))

    def step(self, step: int, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        """An ordinary step of mixed precision; every worker draws its own mini-batch."""
        torch.manual_seed(1000 * step + dist.get_rank())
        drawn = torch.randint(len(labels), (BATCH,))
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(self.model(pixels[drawn]), labels[drawn])
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def train(rule: str, rounds: int = 400, garbage: bool = True, checkpoint: bool = True) -> dict:
    """The held-out error (a share) by round, the workers' running shares [N], and the sum of each layer's parameters.

    With a checkpoint, everything is saved halfway, thrown away, built anew and loaded.
    """
    samples = datasets.load("mnist")
    pixels, labels = torch.from_numpy(samples.features), torch.from_numpy(samples.labels)
    run, errors = Run(rule, garbage), {}
    with tempfile.TemporaryDirectory() as folder:
        for step in range(rounds + 1):
            if step % (rounds // 4) == 0:
                with torch.no_grad():
                    wrong = run.model.module(pixels[TRAINED:]).argmax(-1) != labels[TRAINED:]
                errors[step] = wrong.double().mean().item()
            if step == rounds:
                break
            if checkpoint and step == rounds // 2:
                file = Path(folder, f"rank{dist.get_rank()}.pt")  # each rank has its own: its momentum is its own
                torch.save({name: part.state_dict() for name, part in run.parts.items()}, file)
                run = Run(rule, garbage)
                for name, state in torch.load(file).items():
                    run.parts[name].load_state_dict(state)
            run.step(step, pixels[:TRAINED], labels[:TRAINED])
    aggregation = run.parts.get("aggregation")
    return {
        "errors": errors,
        "shares": None if aggregation is None else aggregation.shares.tolist(),
        "model": [parameter.double().sum().item() for parameter in run.model.parameters()],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = train(sys.argv[1], garbage="--no-garbage" not in sys.argv)
    if dist.get_rank() == 0:
        print("held-out error:", ", ".join(f"{error:.1%} after {step}" for step, error in result["errors"].items()))
        if result["shares"]:
            print("running share per rank:", *(f"{share:.1%}" for share in result["shares"]))
    dist.destroy_process_group()
