"""Ends with the exit code of a job: `python jobs/exit_code.py SUBMISSION_ID`.

75 while it still runs, and where the head does not answer, so that nobody knows.
"""

from __future__ import annotations

import sys

from ray.job_submission import JobStatus, JobSubmissionClient

UNKNOWN = 75


def main(submission_id: str) -> int:
    """The code to end with."""
    try:
        job = JobSubmissionClient().get_job_info(submission_id)
    except Exception as error:  # of the connection, the token, the head: a line, whatever its library says
        reason = str(error).splitlines()[0]
        if isinstance(error, OSError) or "status code 5" in reason:  # also what stands before a dead head
            sys.stderr.write(
                f"job {submission_id}: the head does not answer ({reason}); if it took the job, that "
                "may still run: the same line again continues it\n"
            )
            return UNKNOWN
        sys.stderr.write(f"job {submission_id}: {reason}\n")
        return 1
    if not job.status.is_terminal():
        sys.stderr.write(
            f"job {submission_id}: still running; follow it with `ray job logs --follow {submission_id}`\n"
        )
        return UNKNOWN
    if job.status == JobStatus.SUCCEEDED:
        return 0
    reason = (job.message or "no reason given").splitlines()[0]
    sys.stderr.write(f"job {submission_id}: {job.status.value.lower()}: {reason}\n")
    return job.driver_exit_code if job.driver_exit_code else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
