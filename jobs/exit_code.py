"""Ends with the exit code of a job: `python jobs/exit_code.py SUBMISSION_ID`; 75 while it still runs."""

from __future__ import annotations

import sys

from ray.job_submission import JobStatus, JobSubmissionClient

STILL_RUNNING = 75


def main(submission_id: str) -> int:
    """The code to end with."""
    try:
        job = JobSubmissionClient().get_job_info(submission_id)
    except Exception as error:  # of the connection, the token, the head: a line, whatever its library says
        sys.stderr.write(f"job {submission_id}: {str(error).splitlines()[0]}\n")
        return 1
    if not job.status.is_terminal():
        sys.stderr.write(
            f"job {submission_id}: still running; follow it with `ray job logs --follow {submission_id}`\n"
        )
        return STILL_RUNNING
    if job.status == JobStatus.SUCCEEDED:
        return 0
    reason = (job.message or "no reason given").splitlines()[0]
    sys.stderr.write(f"job {submission_id}: {job.status.value.lower()}: {reason}\n")
    return job.driver_exit_code if job.driver_exit_code else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
