"""Run a scoring job in this process, or continue one."""

from collections.abc import Sequence
from dataclasses import dataclass

from prompt_serve.errors import ConfigInvalid, counted
from prompt_serve.offline.score_job import Advance, Counts, ShardScorer
from prompt_serve.sources.shard import Shard

NumberedShard = tuple[int, Shard]


@dataclass(frozen=True)
class Pending:
    """Shards of a job that have no part yet."""

    shards: Sequence[NumberedShard]
    done: int  # shards with a part

    @property
    def images(self) -> int | None:
        """Number of images, if it is known of all shards."""
        sizes = [shard.size for _, shard in self.shards]
        return None if None in sizes else sum(size or 0 for size in sizes)


def pending(
    scorer: ShardScorer, shards: Sequence[Shard], *, resume: bool, overwrite: bool
) -> Pending:
    """Compare the parts in the output folder with the shards.

    Args:
        scorer: of the job.
        shards: all of its shards.
        resume: keep the parts of an earlier run and score the other shards.
        overwrite: remove the parts of an earlier run.

    Raises:
        ConfigInvalid: there are parts, and neither was requested; or they are of other inputs.
    """
    found = scorer.out.names()
    if overwrite:
        scorer.out.remove(found)
        found = []
    elif found and not resume:
        raise ConfigInvalid(
            f"{scorer.out.path} has {counted(len(found), 'part')} of an earlier run. Add --resume "
            f"to score what is missing, or --overwrite to replace them."
        )
    expected = {scorer.part(index, shard): index for index, shard in enumerate(shards)}
    if strange := [name for name in found if name not in expected]:
        raise ConfigInvalid(
            f"{scorer.out.path} has {counted(len(strange), 'part')} of other images, prompts, "
            f"backbone, --top-k or --top-tasks, such as {strange[0]}. Name another folder, or "
            f"replace them with --overwrite."
        )
    done = {expected[name] for name in found}
    rest = [(index, shard) for index, shard in enumerate(shards) if index not in done]
    return Pending(rest, len(done))


def run_here(scorer: ShardScorer, shards: Sequence[NumberedShard], advance: Advance) -> Counts:
    """Score shards one by one in this process; each uses all cores."""
    total = Counts()
    for index, shard in shards:
        total += scorer.score(index, shard, advance)
    return total
