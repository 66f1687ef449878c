"""What a run asks of SLURM: where its processes meet, and to be queued again."""

import os
import subprocess

from gab.errors import UserError

PATIENCE = 30  # seconds for an answer of scontrol, which waits for ever where the controller is down


def meeting_point() -> None:
    """srun gives ranks but no address: rank 0 runs on the step's first node; the port comes from job and step.

    Sets MASTER_ADDR and MASTER_PORT, unless they are set.

    Raises:
        UserError: SLURM does not tell the first node.
    """
    env = os.environ
    if "MASTER_ADDR" in env and "MASTER_PORT" in env:
        return
    hosts = env.get("SLURM_STEP_NODELIST", "")
    try:
        env["MASTER_ADDR"] = _scontrol("show", "hostnames", hosts).split()[0]
        env["MASTER_PORT"] = str(20000 + (int(env["SLURM_JOB_ID"]) + 97 * int(env["SLURM_STEP_ID"])) % 20000)
    except (OSError, subprocess.SubprocessError, LookupError, ValueError) as error:
        raise UserError(
            f"cannot tell on which node of {hosts or 'this job'} the first process runs ({error}): "
            "export MASTER_ADDR and MASTER_PORT before srun"
        ) from error


def requeue() -> str:
    """Have SLURM queue this job again, of an array this member alone; returns a sentence about what came of it.

    SLURM ends the job at once: call it when all that matters is on disk and has been said. Never raises.
    """
    job = own_job()
    if job is None:
        return "this is no job of SLURM: start the same command again to go on"
    by_hand = f"`scontrol requeue {job}` on a login node, or submit the same command again, to go on"
    try:
        _scontrol("requeue", job)
    except FileNotFoundError:
        return f"job {job} was not requeued, as there is no scontrol here (in a container?): {by_hand}"
    except subprocess.TimeoutExpired:
        return f"job {job} was perhaps not requeued, as scontrol gave no answer in {PATIENCE} s: {by_hand}"
    except subprocess.CalledProcessError as error:
        words = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        return f"job {job} was not requeued ({words}); `sbatch --requeue` would allow it: {by_hand}"
    except OSError as error:
        return f"job {job} was not requeued ({error}): {by_hand}"
    return f"job {job} is queued again"


def own_job() -> str | None:
    """This job as scontrol takes it; a member of an array by its index.

    The last member's job id is that of the whole array: `scontrol requeue $SLURM_JOB_ID` there requeues all members.
    """
    env = os.environ
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def _scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
