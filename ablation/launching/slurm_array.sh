#!/bin/bash
# Workers of the study {study}: one per task of a job array. Change what you like, and submit it by: sbatch {script}
# (A launch does not replace a script that was changed.)
#
# A task that is preempted, whose time is up or whose node is lost returns to the queue and resumes. The first worker that
# finds the study finished (exit status 0) or refused (2) ends the tasks that still wait.
{directives}

unset ${{!SQUEUE_@}} ${{!SCANCEL_@}} SLURM_CLUSTERS # they would hide this cluster's tasks from the commands below
task="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
export ABLATION_JOB="$task" # --status shows it beside the trial
echo "task $task on $(hostname), start number ${{SLURM_RESTART_COUNT:-0}}, $(date --iso-8601=seconds)"
end_waiting_tasks() {{ scancel --state=PENDING --user="$(id -u)" --name={label} || true; }}

if ! cd {working_folder} || [ ! -e {script} ]; then
    echo "error: the node $(hostname) does not see" {working_folder} "and {folder}: they must be on a file system that all nodes share"
    end_waiting_tasks
    exit 2
fi

set +e # a status other than 0 is no fault below: that of the worker, or of a wait that a signal ends
{command} &
worker=$!
# SLURM signals this script alone (--signal, before the time limit) or all processes (TERM). A worker that pauses already
# ignores XCPU, whereas a second TERM would end it before it has saved.
pass_on() {{ sleep 1; kill -XCPU "$worker" 2>/dev/null; }}
trap pass_on INT TERM HUP USR1 USR2 XCPU
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done # a signal ends a `wait` early
wait "$worker"
status=$?

echo "task $task: the worker ended with status $status"
case $status in
    0 | 2) end_waiting_tasks ;;
    75 | 152) # "resume me", or ended by XCPU while it was starting
        for _ in {{1..20}}; do # a controller that is away for minutes does not end the task meanwhile
            if state=$(squeue --noheader --jobs="$task" --format=%T); then
                [ "$state" = RUNNING ] || break # the task was cancelled, or SLURM itself has put it back
                scontrol requeue "$task" && sleep 60 # until SLURM ends this script
            fi
            sleep 5
        done
        ;;
esac
exit "$status"
