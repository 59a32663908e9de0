"""The launchers, with stand-ins for the commands of clouds and of Slurm, and for the training."""

import itertools
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from experiments._names import match_configs

ROOT = pathlib.Path(__file__).parents[2]
ROW = "nonlocal_r50-d8_512x1024_40k_cityscapes"
ROWS = "*-d8_*[a-z]"
FLAGS = ("--data-dir=gs://bucket/data", "--config.data.crop=(64,64)")

# Answers what the launchers ask Python. The training appends a line to `attempts`, and does what
# the next line of `plan` says: the step that is saved from then on, and the end of the attempt.
PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-m experiments") cat "$STATE/names" ;;
  "-m experiments.launch.saved")
    if [ -s "$STATE/unreadable" ]; then sed -i 1d "$STATE/unreadable"; exit 2; fi
    cat "$STATE/saved" ;;
  "-m experiments.train")
    if [[ $3 == --only_check_args ]]; then
      [ -z "$CHECKED" ] || exec {python} "$@"
      exit 0
    fi
    echo "$*" >>"$STATE/attempts"
    read -r saved end <<<"$(sed -n "$(wc -l <"$STATE/attempts")p" "$STATE/plan")"
    echo "$saved" >"$STATE/saved"
    eval "$end" ;;
  *) exec {python} -S "$@" ;;
esac
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=0 "$@"
"""
GCLOUD = """#!/usr/bin/env bash
echo "$*" >>"$STATE/gcloud"
case "$*" in
  *" describe "*) cat "$STATE/slice" 2>/dev/null || { echo "NOT_FOUND: no slice" >&2; exit 1; } ;;
  *" create "*)
    [ -z "$SLOW" ] || /bin/sleep "$SLOW"
    created=$(sed -n "$(grep -c " create " "$STATE/gcloud")p" "$STATE/created" 2>/dev/null)
    echo "${created:-ACTIVE}" >"$STATE/slice" ;;
  *" delete "*)
    if [ -s "$STATE/undeletable" ]; then sed -i 1d "$STATE/undeletable"; exit 1; fi
    rm -f "$STATE/slice" "$STATE/lost" ;;
  *"experiments.train --config"*) eval "${7##*activate && }" ;;
  *" scp "*)  # the state of a lost slice is shown late
    if [ -e "$STATE/lost" ]; then
      echo >>"$STATE/lost"
      [ "$(wc -l <"$STATE/lost")" -lt 4 ] || echo SUSPENDED >"$STATE/slice"
      exit 1
    fi ;;
esac
"""
# Signals the processes of a step, not srun.
SCANCEL = """#!/usr/bin/env bash
echo "$*" >>"$STATE/scancel"
kill -TERM "$(cat "$STATE/pid")"
"""


@pytest.fixture
def environment(tmp_path):
    """The variables of a shell in which the stand-ins replace the commands."""
    commands = tmp_path / "bin"
    commands.mkdir()
    scripts = {
        "python": PYTHON.replace("{python}", shlex.quote(sys.executable)),
        "srun": SRUN,
        "gcloud": GCLOUD,
        "git": "#!/bin/sh\n",
        "scontrol": '#!/bin/sh\necho "$@" >>"$STATE/scontrol"; exit "${REFUSED:-0}"\n',
        "scancel": SCANCEL,
        "sleep": '#!/bin/sh\necho "$@" >>"$STATE/sleeps"; exec /bin/sleep 0.01\n',
    }
    for name, text in scripts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (tmp_path / "saved").write_text("0\n")
    (tmp_path / "names").write_text("\n".join(match_configs(ROW)) + "\n")
    return {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "STATE": str(tmp_path)}


@pytest.fixture
def launch(tmp_path, environment):
    """Starts a launcher: launch(script, arguments, plan=lines, **variables)."""
    started = []

    def launch(script, *arguments, plan=(), **variables):
        if ROWS in arguments:
            (tmp_path / "names").write_text("\n".join(match_configs(ROWS)) + "\n")
        (tmp_path / "plan").write_text("".join(f"{line}\n" for line in plan))
        # A shell that started the tests in the background ignores Ctrl-C in all of their processes,
        # and a launcher could not trap it.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            ["bash", f"experiments/launch/{script}", *arguments],
            cwd=ROOT,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        signal.signal(signal.SIGINT, before)
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def training(config, runs, *flags):
    """The training command, the same in all launchers."""
    name = config.partition(":")[2]
    return [
        "python",
        "-m",
        "experiments.train",
        f"--config={config}",
        f"--workdir={runs}/{name}",
        f"--compilation-cache={runs}/.compiled",
        *flags,
    ]


def of_slurm(output):
    submit, *tasks = output.splitlines()
    assert shlex.split(submit)[:2] == ["sbatch", f"--array=0-{len(tasks) - 1}"]
    return [shlex.split(line.partition(": ")[2])[3:] for line in tasks]


def of_tpu_vm(output):
    archive, *lines = [shlex.split(line) for line in output.splitlines()]
    assert archive[:2] == ["git", "archive"]
    verbs = ["create", "scp", "ssh", "ssh", "delete"]
    assert [line[4] for line in lines] == verbs * (len(lines) // 5)
    assert len({line[5] for line in lines[::5]}) == len(lines) // 5
    return [shlex.split(line[7].partition("activate && ")[2]) for line in lines[3::5]]


def of_jobset(output):
    documents = re.findall(r"^kubectl apply --filename=- <<'END'\n(.*?)\nEND$", output, re.S | re.M)
    jobsets = [yaml.safe_load(text) for text in documents]
    assert len({jobset["metadata"]["name"] for jobset in jobsets}) == len(jobsets)
    assert all(len(jobset["metadata"]["name"]) <= 63 - len("-w-0-123-abcde") for jobset in jobsets)
    (job,) = jobsets[0]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 2
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["operator"] == "In"
    assert rule["onExitCodes"]["values"] == [3]  # restart.sh gave up
    containers = [
        jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
        for jobset in jobsets
    ]
    assert {container["image"] for container in containers} == {"registry/image"}
    for container in containers:
        assert container["command"][2] == '. experiments/launch/restart.sh; restart "$@"'
    return [container["args"][1:] for container in containers]


@pytest.mark.parametrize(
    ("script", "read", "variables"),
    [
        ("slurm.sbatch", of_slurm, {}),
        ("tpu_vm.sh", of_tpu_vm, {"ZONE": "us-west4-a"}),
        ("jobset.sh", of_jobset, {"IMAGE": "registry/image"}),
    ],
)
@pytest.mark.parametrize(("pattern", "number"), [(ROW, 1), (ROWS, 44)])
def test_a_dry_run_prints_the_commands(launch, tmp_path, script, read, variables, pattern, number):
    arguments = [pattern, "gs://bucket/seed0//", *FLAGS]
    process = launch(script, "--dry-run", *arguments, **variables)
    out, err = process.communicate()
    process = launch(script, *arguments, "--dry-run", **variables)
    assert process.communicate() == (out, "")
    assert (process.returncode, err) == (0, "")
    configs = match_configs(pattern)
    assert len(configs) == number
    assert read(out) == [training(config, "gs://bucket/seed0", *FLAGS) for config in configs]
    assert not (tmp_path / "attempts").exists()
    assert not (tmp_path / "gcloud").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "slurm.sbatch",
            "usage: experiments/launch/slurm.sbatch [--dry-run] PATTERN RUNS [FLAG]...",
        ),
        ("tpu_vm.sh", "usage: experiments/launch/tpu_vm.sh [--dry-run] PATTERN RUNS [FLAG]..."),
        ("jobset.sh", "usage: experiments/launch/jobset.sh [--dry-run] PATTERN RUNS [FLAG]..."),
    ],
)
@pytest.mark.parametrize("arguments", [[ROW], [ROW, ""], [ROW, "/"], [ROW, "--data-dir=/data"]])
def test_missing_arguments(launch, script, message, arguments):
    process = launch(script, *arguments)
    _, err = process.communicate()
    assert (process.returncode, err) == (2, f"{message}\n")


CLOUDS = [("tpu_vm.sh", {"ZONE": "us-west4-a"}), ("jobset.sh", {"IMAGE": "registry/image"})]


@pytest.mark.parametrize(("script", "variables"), CLOUDS)
def test_a_missing_variable(launch, script, variables):
    process = launch(script, ROW, "gs://bucket/seed0", **dict.fromkeys(variables, ""))
    _, err = process.communicate()
    (name,) = variables
    assert (process.returncode, err.count("\n")) == (2, 1)
    assert err.startswith(f"{name} is not set; use {name}=")


@pytest.mark.parametrize(("script", "variables"), CLOUDS)
@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("runs/seed0", "RUNS is runs/seed0, which is lost with the slice; use a bucket"),
        ("gs://bucket", "RUNS is gs://bucket, which is lost with the slice; use a bucket"),
        ("gs://bucket/2Seed", "the cloud does not allow the name 2Seed-nonlocal-r50-d8"),
    ],
)
def test_runs_which_a_cloud_cannot_have(launch, tmp_path, script, variables, runs, message):
    process = launch(script, ROW, runs, **variables)
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(message)
    assert not (tmp_path / "gcloud").exists()


@pytest.mark.parametrize(("script", "variables"), [*CLOUDS, ("slurm.sbatch", {})])
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.optimizer.lerning_rate=1", "did you mean --config.optimizer.learning_rate?"),
        ("--config.steps=many", "many"),
        ("--data_dri=data", "Did you mean: data_dir ?"),
        ("--data-dir", "data_dir"),
    ],
)
def test_a_mistake_in_a_flag(launch, tmp_path, script, variables, flag, message):
    process = launch(script, ROW, "gs://bucket/seed0", flag, CHECKED="1", **variables)
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "gcloud").exists()


def test_each_runs_has_names_of_its_own(launch):
    names = set()
    for runs in ("gs://bucket/f32/seed0", "gs://bucket/bf16/seed0"):
        process = launch("tpu_vm.sh", "--dry-run", ROW, runs, ZONE="us-west4-a")
        names.add(shlex.split(process.communicate()[0].splitlines()[1])[5])
    assert len(names) == 2


def test_a_refused_jobset_does_not_keep_back_the_others(launch, tmp_path, environment):
    kubectl = tmp_path / "bin/kubectl"
    kubectl.write_text(
        '#!/bin/sh\necho >>"$STATE/kubectl"\n[ "$(wc -l <"$STATE/kubectl")" != 1 ]\n'
    )
    kubectl.chmod(0o755)
    (tmp_path / "names").write_text("\n".join(match_configs(ROWS)[:2]) + "\n")
    process = launch("jobset.sh", ROW, "gs://bucket/seed0", IMAGE="registry/image")
    process.communicate()
    assert process.returncode == 1
    assert (tmp_path / "kubectl").read_text() == "\n\n"


TASK = {
    "SLURM_ARRAY_JOB_ID": "7",
    "SLURM_ARRAY_TASK_ID": "0",
    "SLURM_JOB_ID": "7",
    "SLURM_CPUS_PER_TASK": "2",
}
# Saves when it gets SIGTERM.
TRAINS = (
    "0 echo $$ >$STATE/pid; trap 'echo 10 | tee $STATE/ended >$STATE/saved; exit 0' TERM;"
    " while :; do /bin/sleep 0.05; done"
)


def wait_for(path):
    end = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, path
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("plan", "attempts", "status"),
    [
        (["10 kill -KILL $$", "20 exit 1", "finished exit 0"], 3, 0),
        (["10 exit 0", "finished exit 0"], 2, 0),  # SIGTERM, after which the command saves
        (["0 exit 2", "10 exit 2", "10 exit 2", "finished exit 0"], 4, 0),  # without a network
        (["10 exit 134", "10 exit 134", "10 exit 134"], 3, 3),
        (["0 exit 1", "10 exit 1", "10 exit 1", "finished exit 0"], 4, 0),
        (["0 exit 0", "0 exit 0"], 2, 3),
    ],
)
def test_slurm_restarts_as_long_as_an_attempt_saves(launch, tmp_path, plan, attempts, status):
    process = launch("slurm.sbatch", ROW, "/runs", *FLAGS, plan=plan, **TASK)
    _, err = process.communicate()
    assert process.returncode == status, err
    command = training(*match_configs(ROW), "/runs", *FLAGS)
    ran = (tmp_path / "attempts").read_text().splitlines()
    assert ran == [" ".join(command[1:])] * attempts
    assert err.count("; again from step ") == attempts - 1
    saved = ["0", *(line.split()[0] for line in plan)]
    failures = sum(before == after for before, after in itertools.pairwise(saved))
    sleeps = tmp_path / "sleeps"
    waits = sleeps.read_text().splitlines() if sleeps.exists() else []
    assert waits == ["60"] * (failures - (status == 3))


@pytest.mark.parametrize(
    ("script", "variables"), [("slurm.sbatch", TASK), ("tpu_vm.sh", {"ZONE": "us-west4-a"})]
)
def test_a_finished_run_is_not_started_again(launch, tmp_path, script, variables):
    (tmp_path / "saved").write_text("finished\n")
    process = launch(script, ROW, "gs://bucket/runs", **variables)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "", "")
    assert not (tmp_path / "attempts").exists()
    if script == "tpu_vm.sh":
        (line,) = (tmp_path / "gcloud").read_text().splitlines()
        assert " describe " in line


@pytest.mark.parametrize("refused", ["0", "1"])
def test_slurm_saves_and_queues_one_task_again_before_its_time_limit(launch, tmp_path, refused):
    process = launch("slurm.sbatch", ROW, "/runs", plan=[TRAINS], **TASK, REFUSED=refused)
    wait_for(tmp_path / "pid")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate()
    assert process.returncode == 143, err
    assert (tmp_path / "scancel").read_text() == "--signal=TERM 7_0\n"
    assert (tmp_path / "saved").read_text() == "10\n"
    assert (tmp_path / "scontrol").read_text() == "requeue 7_0\n"
    assert err.count("submit it again") == int(refused)


@pytest.mark.parametrize(("failures", "status"), [(29, 0), (30, 1)])
def test_the_saved_step_is_read_again_after_a_failure(launch, tmp_path, failures, status):
    (tmp_path / "unreadable").write_text("\n" * failures)
    process = launch("slurm.sbatch", ROW, "/runs", plan=["finished exit 0"], **TASK)
    process.communicate()
    assert process.returncode == status
    assert (tmp_path / "sleeps").read_text() == "10\n" * 29
    assert (tmp_path / "attempts").exists() == (status == 0)


def test_a_pod_passes_sigterm_on(launch, tmp_path):
    """Like the container of jobset.yaml."""
    loop = tmp_path / "loop.sh"
    loop.write_text('. experiments/launch/restart.sh; restart "$@"')
    plan = ["10 trap 'exit 0' TERM; while :; do /bin/sleep 0.1; done"]
    command = training(*match_configs(ROW), "/runs")
    process = launch(
        os.path.relpath(loop, ROOT / "experiments/launch"), "/runs", *command, plan=plan
    )
    wait_for(tmp_path / "attempts")
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143


@pytest.mark.parametrize("seconds", [2, 300])
def test_a_tpu_vm_ends_the_attempt_before(launch, tmp_path, environment, seconds):
    """By SIGTERM. Only if it is still saving after two minutes, it is killed."""
    process = launch("tpu_vm.sh", "--dry-run", ROW, "gs://bucket/seed0", ZONE="us-west4-a")
    lines = process.communicate()[0].splitlines()
    line = lines[3]
    stop = shlex.split(line)[7].removeprefix("--command=").partition("mkdir")[0]
    assert stop.removesuffix("; ") in shlex.split(lines[4])[7]
    for name, text in {
        "pgrep": f'[ "$(grep -c sleep "$STATE/calls")" -lt {seconds} ]',
        "pkill": 'echo "pkill $*" >>"$STATE/calls"',
        "sleep": 'echo "sleep $*" >>"$STATE/calls"',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    subprocess.run(["sh", "-c", stop], env=environment, check=True)
    pattern = "^python -m experiments.train"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"pkill -f {pattern}",
        *["sleep 1"] * min(seconds, 120),
        f"pkill -KILL -f {pattern}",
    ]


def test_only_the_pod_of_process_0_gives_up(launch, tmp_path):
    loop = tmp_path / "loop.sh"
    loop.write_text('. experiments/launch/restart.sh; restart "$@"')
    path = os.path.relpath(loop, ROOT / "experiments/launch")
    command = training(*match_configs(ROW), "/runs")
    plan = ["0 exit 1", "0 exit 1", "finished exit 0"]
    process = launch(path, "/runs", *command, plan=plan, JOB_COMPLETION_INDEX="1")
    process.communicate()
    assert process.returncode == 0


def gcloud(tmp_path):
    """The calls of gcloud, without what reads the state of the slice."""
    verbs = [line.split()[3] for line in (tmp_path / "gcloud").read_text().splitlines()]
    return [verb for verb in verbs if verb != "describe"]


RUN = ["scp", "ssh", "ssh"]


@pytest.mark.parametrize(
    ("plan", "created", "calls"),
    [
        (  # after a save, then with a process that fails
            ["10 echo SUSPENDED >$STATE/slice; exit 1", "20 exit 1", "finished exit 0"],
            [],
            ["create", *RUN, "delete", "create", *RUN, *RUN, "delete"],
        ),
        (  # three times before the first save
            ["0 echo SUSPENDED >$STATE/slice; exit 1"] * 3 + ["finished exit 0"],
            [],
            ["create", *RUN, "delete"] * 4,
        ),
        (  # before the first save, and the state is shown late
            ["0 echo >$STATE/lost; exit 1", "finished exit 0"],
            [],
            ["create", *RUN, *["scp"] * 5, "delete", "create", *RUN, "delete"],
        ),
        (  # the connection is lost
            ["0 exit 255"] * 3 + ["finished exit 0"],
            [],
            ["create", *RUN * 4, "delete"],
        ),
        (  # while the slice is created
            ["finished exit 0"],
            ["FAILED", "SUSPENDED"],
            ["create", "delete", "create", "delete", "create", *RUN, "delete"],
        ),
    ],
)
def test_a_tpu_vm_is_created_again_after_a_preemption(launch, tmp_path, plan, created, calls):
    (tmp_path / "created").write_text("".join(f"{state}\n" for state in created))
    process = launch("tpu_vm.sh", ROW, "gs://bucket/seed0", *FLAGS, plan=plan, ZONE="us-west4-a")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert gcloud(tmp_path) == calls


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("during", ["create", "training"])
def test_no_slice_is_left_after_a_signal(launch, tmp_path, number, during):
    slow = "0.5" if during == "create" else ""
    process = launch(
        "tpu_vm.sh", ROW, "gs://bucket/seed0", plan=[TRAINS], ZONE="us-west4-a", SLOW=slow
    )
    wait_for(tmp_path / ("gcloud" if slow else "pid"))
    if slow:
        while "create" not in gcloud(tmp_path):
            time.sleep(0.01)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:  # a terminal signals all processes
        os.killpg(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, out + err
    assert gcloud(tmp_path) == ["create", *([] if slow else RUN), "delete"]
    assert not (tmp_path / "slice").exists()
    if not slow:
        wait_for(tmp_path / "ended")


@pytest.mark.parametrize("failures", [4, 5])
def test_a_slice_is_deleted_again_after_a_failure(launch, tmp_path, failures):
    (tmp_path / "undeletable").write_text("\n" * failures)
    process = launch(
        "tpu_vm.sh", ROW, "gs://bucket/seed0", plan=["finished exit 0"], ZONE="us-west4-a"
    )
    out, _ = process.communicate()
    name = (tmp_path / "gcloud").read_text().split()[4]
    command = f"gcloud compute tpus queued-resources delete {name} --force --zone=us-west4-a"
    assert process.returncode == (failures == 5)
    assert (f"{name}: {command}\n" in out) == (failures == 5)
    assert (tmp_path / "slice").exists() == (failures == 5)


def test_the_commands_of_the_page(environment):
    text = (ROOT / "docs/pods.md").read_text().replace("\\\n", "")
    exports = re.findall("^export .*$", text, re.M)
    commands = re.findall(r"^.*bash experiments/launch/.*$", text, re.M)
    assert len(commands) == 3
    variables = {"BUCKET": "bucket", "PROJECT": "project", "IMAGE": "registry/image"}
    for command in commands:
        if "--dry-run" not in command:
            command = re.sub(r"(launch/\S+)", r"\1 --dry-run", command)
        done = subprocess.run(
            ["bash", "-c", "\n".join([*exports, command])],
            cwd=ROOT,
            env={**environment, **variables},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "resnet50_v1c.pth" in done.stdout
    assert len(match_configs("*_r50-d8_*[a-z]")) == 22


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck():
    scripts = sorted(map(str, (ROOT / "experiments/launch").glob("*.s*")))
    subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, check=True)


def test_each_launcher_has_less_than_60_lines():
    for path in (ROOT / "experiments/launch").iterdir():
        if path.is_file():
            assert len(path.read_text().splitlines()) < 60, path


def test_the_words_of_a_variable_may_be_on_several_lines(launch):
    flags = "--spot\n--service-account=a@b\n"
    variables = {"ZONE": "us-west4-a", "QUEUE_FLAGS": flags, "ARCHIVE_FLAGS": "--prefix=a\n-v"}
    process = launch("tpu_vm.sh", "--dry-run", ROW, "gs://bucket/seed0", **variables)
    archive, create, *_ = process.communicate()[0].splitlines()
    assert "--spot --service-account=a@b " in create
    assert archive.endswith(" --prefix=a -v HEAD")
    process = launch("slurm.sbatch", "--dry-run", ROW, "/runs", SBATCH_FLAGS="--nodes=2\n--time=1")
    assert " --nodes=2 --time=1 " in process.communicate()[0]


def test_slices_that_are_created_again_get_the_archive_of_their_own_launcher(
    launch, tmp_path, environment
):
    git = tmp_path / "bin/git"
    git.write_text('#!/bin/sh\ntouch "${2#--output=}"; echo "${2#--output=}" >>"$STATE/archives"\n')
    plan = ["0 echo SUSPENDED >$STATE/slice; exit 1", "finished exit 0"]
    for _ in range(2):
        (tmp_path / "saved").write_text("0\n")
        (tmp_path / "attempts").unlink(missing_ok=True)
        process = launch("tpu_vm.sh", ROW, "gs://bucket/seed0", plan=plan, ZONE="us-west4-a")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
    archives = (tmp_path / "archives").read_text().splitlines()
    lines = (tmp_path / "gcloud").read_text().splitlines()
    copied = [line.split()[4] for line in lines if " scp " in line]
    assert copied == [name for archive in archives for name in [archive] * 2]
    assert len(set(archives)) == 2
    assert not any(pathlib.Path(archive).parent.exists() for archive in archives)
