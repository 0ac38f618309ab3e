"What the benchmarks share: medians of interleaved rounds, and the memory that a function takes in a fresh process (Linux)."
import statistics
import subprocess
import sys
from pathlib import Path

FORGET = Path('/proc/self/clear_refs')
COUNTS = FORGET.exists()    # whether this system counts memory so


def resident(
    field,      # VmRSS (now), VmHWM (the most since `FORGET`), VmData (asked for)
):              # MB
    "A counter of this process."
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(field))/1024


def peak(f, *args):     # MB
    "By how much resident memory rose while `f(*args)` ran, above what this process held before."
    before = resident('VmRSS')
    FORGET.write_text('5')     # the most so far
    f(*args)
    return resident('VmHWM') - before


def memory(
    script,     # that prints a number for `--memory WHAT...`
    *what,
):              # MB, None where the script failed
    "What `script` measures in a process of its own."
    done = subprocess.run([sys.executable, str(script), '--memory', *map(str, what)], stdout=subprocess.PIPE, text=True)
    return float(done.stdout) if done.returncode==0 else None


def megabytes(mb): return 'failed' if mb is None else f'{mb:,.0f}'


def interleaved(
    runs,       # name -> function
    rounds,
    clock,
):              # name -> seconds
    "Median time of each function over `rounds` rounds, after one to warm up; a busy machine slows all of them alike."
    times = {name: [] for name in runs}
    for i in range(rounds+1):
        for name, f in runs.items():
            start = clock()
            f()
            if i: times[name].append(clock() - start)
    return {name: statistics.median(v) for name, v in times.items()}
