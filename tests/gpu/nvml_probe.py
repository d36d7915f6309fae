"""NVML's answers beside nvidia-smi's, by ctypes and without Tandem: what telemetry rests on, on the GPU at hand.

    nvml_probe.py OUT [--burn BINARY]

Samples the first GPU every 20 ms: idle for 5 s, then 15 s while BINARY (burn.cu) loads it, then 5 s idle. Prints how often power and energy are
renewed, how the energy counter compares with integrated power and with nvidia-smi, and writes every sample to OUT.
"""

import ctypes as c
import json
import subprocess
import sys
import threading
import time

out, burn = sys.argv[1], sys.argv[3] if len(sys.argv) > 3 else None
nvml = c.CDLL("libnvidia-ml.so.1")


class Field(c.Structure):
    _fields_ = [("field", c.c_uint), ("scope", c.c_uint), ("stamp", c.c_longlong), ("latency", c.c_longlong), ("type", c.c_uint),
                ("status", c.c_int), ("value", c.c_ulonglong)]


assert c.sizeof(Field) == 40 and nvml.nvmlInit_v2() == 0
device = c.c_void_p()
assert nvml.nvmlDeviceGetHandleByIndex_v2(0, c.byref(device)) == 0


def number(name, *choice, kind=c.c_uint):
    value = kind()
    status = getattr(nvml, name)(device, *choice, c.byref(value))
    return value.value if status == 0 else f"error {status}"


def fields():
    both = (Field * 2)()
    both[0].field, both[1].field = 82, 186
    status = nvml.nvmlDeviceGetFieldValues(device, 2, both)
    return [(f.value & 0xFFFFFFFF) if status == 0 and f.status == 0 else f"error {status} {f.status}" for f in both], [f.type for f in both]


print("field values (memory temperature, instant power mW), types:", *fields())
for name, choice, kind in [("nvmlDeviceGetEnforcedPowerLimit", (), c.c_uint), ("nvmlDeviceGetCurrentClocksEventReasons", (), c.c_ulonglong),
                           ("nvmlDeviceGetCurrentClocksThrottleReasons", (), c.c_ulonglong), ("nvmlDeviceGetTotalEccErrors", (0, 0), c.c_ulonglong),
                           ("nvmlDeviceGetTotalEccErrors", (1, 1), c.c_ulonglong), ("nvmlDeviceGetPcieThroughput", (0,), c.c_uint),
                           ("nvmlDeviceGetPcieReplayCounter", (), c.c_uint), ("nvmlDeviceGetCurrPcieLinkGeneration", (), c.c_uint),
                           ("nvmlDeviceGetCurrPcieLinkWidth", (), c.c_uint), ("nvmlDeviceGetClockInfo", (2,), c.c_uint)]:
    asked = time.perf_counter()
    answer = number(name, *choice, kind=kind)
    print(f"{name}{choice}: {answer} ({(time.perf_counter() - asked) * 1e3:.2f} ms)")

samples, burned = [], {}


def load():
    time.sleep(5)
    burned.update(json.loads(subprocess.run([burn, "15"], capture_output=True, text=True, check=True).stdout))


smi = subprocess.Popen(["nvidia-smi", "-i", "0", "--query-gpu=power.draw,temperature.gpu", "--format=csv,noheader,nounits", "-lms", "200"],
                       stdout=subprocess.PIPE, text=True)
thread = threading.Thread(target=load)
if burn:
    thread.start()
start = time.time()
while time.time() - start < 26:
    (memory, instant), _ = fields()
    samples.append([time.time(), number("nvmlDeviceGetPowerUsage") / 1e3, number("nvmlDeviceGetTotalEnergyConsumption", kind=c.c_ulonglong) / 1e3,
                    instant / 1e3, number("nvmlDeviceGetTemperature", 0), memory, number("nvmlDeviceGetClockInfo", 1)])
    time.sleep(0.02)
if burn:
    thread.join()
smi.terminate()
rows = [[float(x) for x in line.split(",")] for line in smi.communicate()[0].splitlines() if line.count(",") == 1 and "N/A" not in line]
with open(out, "w", encoding="utf-8") as file:
    file.write("time_s,power_w,energy_j,power_instant_w,temperature_c,memory_temperature_c,sm_clock_mhz\n")
    file.writelines(",".join(map(str, row)) + "\n" for row in samples)

for name, column in [("power_w", 1), ("energy_j", 2), ("power_instant_w", 3)]:
    changes = [b[0] for a, b in zip(samples, samples[1:]) if b[column] != a[column]]
    gaps = sorted(b - a for a, b in zip(changes, changes[1:]))
    print(f"{name} is renewed every {gaps[len(gaps) // 2] * 1e3:.0f} ms (median; p90 {gaps[int(len(gaps) * 0.9)] * 1e3:.0f} ms)")
mean = lambda values: sum(values) / len(values)
spans = {"all": (samples[0][0], samples[-1][0])}
if burned:
    began, ended = burned["began_ns"] / 1e9, burned["ended_ns"] / 1e9
    spans |= {"idle": (samples[0][0], began - 0.5), "burning, settled": (began + 3, ended - 0.5), "burning, first 3 s": (began, began + 3)}
for name, (lo, hi) in spans.items():
    part = [s for s in samples if lo <= s[0] <= hi]
    counted = part[-1][2] - part[0][2]
    integral = lambda i: sum((a[i] + b[i]) / 2 * (b[0] - a[0]) for a, b in zip(part, part[1:]))
    average, instant = integral(1), integral(3)
    print(f"{name}: {part[-1][0] - part[0][0]:.1f} s, counter {counted:.0f} J, power integrated {average:.0f} J ({100 * (average / counted - 1):+.2f} %), "
          f"instant power integrated {instant:.0f} J ({100 * (instant / counted - 1):+.2f} %), mean {mean([s[1] for s in part]):.1f} W, "
          f"temperature {part[0][4]}..{part[-1][4]} C, memory {part[0][5]}..{part[-1][5]} C, clock {mean([s[6] for s in part]):.0f} MHz")
print(f"nvidia-smi: {len(rows)} readings, {min(r[0] for r in rows):.1f}..{max(r[0] for r in rows):.1f} W, up to {max(r[1] for r in rows):.0f} C; "
      f"NVML here: {min(s[1] for s in samples):.1f}..{max(s[1] for s in samples):.1f} W, up to {max(s[4] for s in samples)} C")
