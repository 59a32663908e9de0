"""The launchers, with stand-ins for the commands of clouds and of Slurm, and for the training."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

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
  "-m experiments.launch.saved") cat "$STATE/saved" ;;
  "-m experiments.train")
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
  *" describe "*) cat "$STATE/slice" 2>/dev/null ;;
  *" create "*) echo ACTIVE >"$STATE/slice" ;;
  *" delete "*) rm -f "$STATE/slice" ;;
  *"experiments.train --config"*) eval "${7##*activate && }" ;;
esac
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
        "scontrol": '#!/bin/sh\necho "$@" >>"$STATE/scontrol"\n',
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

    def launch(script, *arguments, plan=(), **variables):
        if ROWS in arguments:
            (tmp_path / "names").write_text("\n".join(match_configs(ROWS)) + "\n")
        (tmp_path / "plan").write_text("".join(f"{line}\n" for line in plan))
        return subprocess.Popen(
            ["bash", f"experiments/launch/{script}", *arguments],
            cwd=ROOT,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return launch


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
    assert all(line[5].replace("-", "").isalnum() for line in lines[::5])
    return [shlex.split(line[7].partition("activate && ")[2]) for line in lines[3::5]]


def of_jobset(output):
    documents = re.findall(r"^kubectl apply --filename=- <<'END'\n(.*?)\nEND$", output, re.S | re.M)
    jobsets = [yaml.safe_load(text) for text in documents]
    assert len({jobset["metadata"]["name"] for jobset in jobsets}) == len(jobsets)
    (job,) = jobsets[0]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 2
    containers = [
        jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
        for jobset in jobsets
    ]
    assert {container["image"] for container in containers} == {"registry/image"}
    for container in containers:
        assert container["command"][2] == '. experiments/launch/common.sh; restart "$@"'
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
    process = launch(script, "--dry-run", pattern, "gs://bucket/seed0/", *FLAGS, **variables)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    configs = match_configs(pattern)
    assert len(configs) == number
    assert read(out) == [training(config, "gs://bucket/seed0", *FLAGS) for config in configs]
    assert not (tmp_path / "attempts").exists()
    assert not (tmp_path / "gcloud").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("slurm.sbatch", "use: experiments/launch/slurm.sbatch [--dry-run] PATTERN RUNS [FLAG]..."),
        ("tpu_vm.sh", "use: experiments/launch/tpu_vm.sh [--dry-run] PATTERN RUNS [FLAG]..."),
        ("jobset.sh", "use: experiments/launch/jobset.sh [--dry-run] PATTERN RUNS [FLAG]..."),
    ],
)
def test_missing_arguments(launch, script, message):
    process = launch(script, ROW)
    _, err = process.communicate()
    assert (process.returncode, err) == (2, f"{message}\n")


TASK = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "2"}


@pytest.mark.parametrize(
    ("plan", "attempts", "status"),
    [
        (["10 kill -KILL $$", "20 exit 1", "finished exit 0"], 3, 0),
        (["10 exit 0", "finished exit 0"], 2, 0),  # SIGTERM, after which the command saves
        (["0 exit 2"], 1, 2),
        (["10 exit 134", "10 exit 134"], 2, 134),
        (["0 exit 0"], 1, 1),
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


@pytest.mark.parametrize(
    ("script", "variables"), [("slurm.sbatch", TASK), ("tpu_vm.sh", {"ZONE": "us-west4-a"})]
)
def test_a_finished_run_is_not_started_again(launch, tmp_path, script, variables):
    (tmp_path / "saved").write_text("finished\n")
    process = launch(script, ROW, "/runs", **variables)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "", "")
    assert not (tmp_path / "attempts").exists()
    if script == "tpu_vm.sh":
        (line,) = (tmp_path / "gcloud").read_text().splitlines()
        assert " describe " in line


def test_slurm_queues_the_job_again_before_its_time_limit(launch, tmp_path):
    process = launch("slurm.sbatch", ROW, "/runs", plan=["finished sleep 1"], **TASK)
    while not (tmp_path / "attempts").exists():
        pass
    process.send_signal(signal.SIGUSR1)
    process.communicate()
    assert process.returncode == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"


def test_a_pod_passes_sigterm_on(launch, tmp_path):
    """Like the container of jobset.yaml."""
    loop = tmp_path / "loop.sh"
    loop.write_text('. experiments/launch/common.sh; restart "$@"')
    plan = ["10 trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    command = training(*match_configs(ROW), "/runs")
    process = launch(
        os.path.relpath(loop, ROOT / "experiments/launch"), "/runs", *command, plan=plan
    )
    while not (tmp_path / "attempts").exists():
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143


@pytest.mark.parametrize("seconds", [2, 300])
def test_a_tpu_vm_ends_the_attempt_before(launch, tmp_path, environment, seconds):
    """By SIGTERM. Only if it is still saving after two minutes, it is killed."""
    process = launch("tpu_vm.sh", "--dry-run", ROW, "gs://bucket/seed0", ZONE="us-west4-a")
    line = process.communicate()[0].splitlines()[3]
    stop = shlex.split(line)[7].removeprefix("--command=").partition("mkdir")[0]
    for name, text in {
        "pgrep": f'[ "$(grep -c sleep "$STATE/calls")" -lt {seconds} ]',
        "pkill": 'echo "pkill $*" >>"$STATE/calls"',
        "sleep": 'echo "sleep $*" >>"$STATE/calls"',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    subprocess.run(["sh", "-c", stop], env=environment, check=True)
    pattern = "[e]xperiments.train"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"pkill -f {pattern}",
        *["sleep 1"] * min(seconds, 120),
        f"pkill -KILL -f {pattern}",
    ]


def test_only_the_pod_of_process_0_gives_up(launch, tmp_path):
    loop = tmp_path / "loop.sh"
    loop.write_text('. experiments/launch/common.sh; restart "$@"')
    path = os.path.relpath(loop, ROOT / "experiments/launch")
    command = training(*match_configs(ROW), "/runs")
    plan = ["0 exit 1", "0 exit 1", "finished exit 0"]
    process = launch(path, "/runs", *command, plan=plan, JOB_COMPLETION_INDEX="1")
    process.communicate()
    assert process.returncode == 0


def test_a_tpu_vm_is_created_again_after_a_preemption(launch, tmp_path):
    plan = ["10 echo SUSPENDED >$STATE/slice; exit 1", "20 exit 1", "finished exit 0"]
    process = launch("tpu_vm.sh", ROW, "gs://bucket/seed0", *FLAGS, plan=plan, ZONE="us-west4-a")
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    verbs = [line.split()[3] for line in (tmp_path / "gcloud").read_text().splitlines()]
    created, run = ["describe", "create", "describe"], ["scp", "ssh", "ssh"]
    assert verbs == [
        *(*created, *run),
        *("describe", "delete", *created[1:], *run),
        *("describe", *run),
        *("describe", "delete"),
    ]


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
