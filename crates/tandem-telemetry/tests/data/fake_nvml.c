/* A library with the interface of NVML and two invented GPUs: 300 W and 500 W, whose energy counters follow the clock. */
#include <stdio.h>
#include <string.h>
#include <time.h>

typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned long long reference, violation; } violation;
typedef struct { unsigned field, scope; long long stamp, latency; unsigned type; int status; union { unsigned u; double d; unsigned long long ull; } value; } field;
typedef long device; /* 1 or 2 */

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3 };
static int up = 0;

int nvmlInit_v2(void) { up++; return OK; }
int nvmlShutdown(void) { up--; return OK; }
const char *nvmlErrorString(int status) { return status == UNSUPPORTED ? "Not Supported" : "Unknown Error"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return up > 0 ? OK : INVALID; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *out) { *out = index + 1; return index < 2 ? OK : INVALID; }
int nvmlDeviceGetUUID(device d, char *text, unsigned length) { snprintf(text, length, "GPU-fake-%ld", d); return OK; }
int nvmlDeviceGetName(device d, char *text, unsigned length) { (void)d; snprintf(text, length, "NVIDIA Invented"); return OK; }
static unsigned watts(device d) { return d == 1 ? 300 : 500; }
int nvmlDeviceGetPowerUsage(device d, unsigned *mw) { *mw = watts(d) * 1000; return OK; }
int nvmlDeviceGetEnforcedPowerLimit(device d, unsigned *mw) { (void)d; *mw = 700000; return OK; }
int nvmlDeviceGetTotalEnergyConsumption(device d, unsigned long long *mj) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned long long ms = (unsigned long long)now.tv_sec % 100000 * 1000 + now.tv_nsec / 1000000;
    *mj = 5000000000ull + watts(d) * ms;
    return OK;
}
int nvmlDeviceGetUtilizationRates(device d, utilization *out) { out->gpu = 90 + d; out->memory = 40; return OK; }
int nvmlDeviceGetMemoryInfo(device d, memory *out) { (void)d; out->total = 85520809984ull; out->free = 20ull << 30; out->used = out->total - out->free; return OK; }
int nvmlDeviceGetTemperature(device d, int sensor, unsigned *c) { *c = 50 + d; return sensor == 0 ? OK : INVALID; }
int nvmlDeviceGetClockInfo(device d, int type, unsigned *mhz) { (void)d; *mhz = type == 1 ? 1980 : type == 2 ? 2619 : 0; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(device d, unsigned long long *bits) { (void)d; *bits = 4; return OK; }
int nvmlDeviceGetTotalEccErrors(device d, int kind, int counter, unsigned long long *n) { (void)d; *n = kind * 10 + counter; return OK; }
int nvmlDeviceGetPcieThroughput(device d, int direction, unsigned *kb) { (void)d; *kb = direction == 0 ? 1000 : 2000; return OK; }
int nvmlDeviceGetPcieReplayCounter(device d, unsigned *n) { (void)d; *n = 3; return OK; }
int nvmlDeviceGetViolationStatus(device d, int policy, violation *out) { (void)d; out->reference = 1; out->violation = policy == 0 ? 7000000 : 0; return OK; }
int nvmlDeviceGetEncoderUtilization(device d, unsigned *percent, unsigned *period) { (void)d; (void)percent; (void)period; return UNSUPPORTED; }
int nvmlDeviceGetFieldValues(device d, int n, field *fields) {
    for (int i = 0; i < n; i++) {
        fields[i].status = OK;
        fields[i].type = 1;
        if (fields[i].field == 82) fields[i].value.u = 60 + d;
        else if (fields[i].field == 186) fields[i].value.u = watts(d) * 1001;
        else fields[i].status = UNSUPPORTED;
    }
    return OK;
}
