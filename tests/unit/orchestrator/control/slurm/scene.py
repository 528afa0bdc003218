"""A run on a Slurm that says what a test wants."""

from __future__ import annotations

from pathlib import Path

from orchestrator.control.slurm.executor import SlurmExecutor
from orchestrator.control.slurm.sentinel import run_refusal, superseded
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import JobKind, SubmittedJob
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe
from tests.unit.orchestrator.scheduler import Answers

STAGES = ("corpus", "encoder", "codebook", "tokenize", "pack", "train", "perplexity")
NUM_JOBS = len(STAGES) + 3 + 1
"""Workers of codebook and tokenize, and the sentinel."""
COUNTING = """#!/bin/sh
echo "sbatch $*" >> {folder}/asked
echo "Submitted batch job $(grep -c ^sbatch {folder}/asked)"
"""


class Scene:
    """A run on a Slurm that says what a test wants, and accepts everything."""

    def __init__(self, tmp_path: Path, answers: Answers) -> None:
        self.answers, self.store = answers, Store.open(str(tmp_path / "store"))
        where = cluster(self.store.storage.url, backend="slurm", slurm={"max_resumes": 2})
        self.run = RunFolder(self.store.run_storage("small"))
        asked = recipe(**{"evaluate.continuations": None})
        self.run.create(plan_of(asked), asked, where, {}, {})
        sbatch = answers.folder / "sbatch"
        sbatch.write_text(COUNTING.format(folder=answers.folder))
        sbatch.chmod(0o755)
        self.books(), self.queue(), answers.say("scancel", "")
        answers.say("scontrol", "MaxArraySize            = 1001\n")
        self.executor = SlurmExecutor()

    def id(self, stage: str) -> str:
        return next(i.id for i in self.run.plan().instances if i.stage == stage)

    def publish(self, *stages: str) -> None:
        for stage in stages:
            i = self.run.plan().instance(self.id(stage))
            facts = {"num_shards": 4}
            self.store.artifact(i.stage, i.key).publish(inputs=i.inputs, facts=facts, producer={})

    def start(self) -> tuple[str, int]:
        started = self.executor.start(self.run, self.store)
        return started.outcome, started.num_jobs

    def refusal(self, submission: int) -> str:
        return superseded(self.run, submission) or run_refusal(self.run, self.store)

    def job(self, stage: str) -> str:
        return self.jobs("stage", self.id(stage))[0].id

    def jobs(self, kind: JobKind, instance: str) -> list[SubmittedJob]:
        newest = self.run.submissions.newest_jobs()
        return [job for job in newest if (job.kind, job.instance) == (kind, instance)]

    def books(self, **words: str) -> None:
        """What sacct says of the stages' jobs, and nothing of others."""
        rows = [f"{self.job(stage)}|{word}|1:0|node1" for stage, word in words.items()]
        self.answers.say("sacct", "\n".join([*rows, ""]))

    def queue(self, **words: str) -> None:
        rows = [f"{self.job(stage)}|{word}|node1|None|x" for stage, word in words.items()]
        self.answers.say("squeue", "\n".join([*rows, ""]))

    def queue_all(self) -> None:
        """Let all newest jobs wait, until somebody cancels any: then nobody knows one any more."""
        ids = [job.id for job in self.run.submissions.newest_jobs()]
        self.answers.say("squeue", "".join(f"{i}|PENDING||Priority|x|y\n" for i in ids))
        scancel = self.answers.folder / "scancel"
        scancel.write_text(
            f'#!/bin/sh\necho "scancel $*" >> {self.answers.folder}/asked\n'
            f": > {self.answers.folder}/squeue.txt\n"
        )

    def asked(self, command: str) -> list[str]:
        return [line for line in self.answers.asked if line.startswith(command)]
