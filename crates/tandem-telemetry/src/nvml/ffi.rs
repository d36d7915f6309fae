//! The functions of `nvml.h` that are used, with the types of its stable interface.
//!
//! Symbols are looked up one by one, so that an older driver offers less instead of nothing. The ABI is C's; the structures are
//! those of NVML 11 to 13 (`nvmlUtilization_t`, `nvmlMemory_t`, `nvmlFieldValue_t`, `nvmlViolationTime_t`).

#![expect(unsafe_code, reason = "a C library is called")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};
use std::ptr;

use crate::error::TelemetryError;

/// `nvmlReturn_t`; zero is success.
type Return = c_int;
const SUCCESS: Return = 0;

/// An opaque handle that belongs to the library and is valid as long as it is loaded.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Device(*mut std::ffi::c_void);

// SAFETY: NVML is documented to be thread-safe, and a handle is a name, not memory of ours.
unsafe impl Send for Device {}

/// `nvmlUtilization_t`: percent of time.
#[repr(C)]
#[derive(Default)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlMemory_t`, bytes.
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlViolationTime_t`: microseconds of reference, nanoseconds of violation.
#[repr(C)]
#[derive(Default)]
struct ViolationTime {
    reference: c_ulonglong,
    violation: c_ulonglong,
}

/// `nvmlFieldValue_t`; `value` is a union of eight bytes.
#[repr(C)]
#[derive(Default)]
struct FieldValue {
    field_id: c_uint,
    scope_id: c_uint,
    timestamp_us: i64,
    latency_us: i64,
    value_type: c_uint,
    status: Return,
    value: [u8; 8],
}

/// `NVML_FI_DEV_MEMORY_TEMP`, C.
const FIELD_MEMORY_TEMP: c_uint = 82;
/// `NVML_FI_DEV_POWER_INSTANT`, mW: without the averaging of `nvmlDeviceGetPowerUsage`.
const FIELD_POWER_INSTANT: c_uint = 186;
/// `NVML_VALUE_TYPE_UNSIGNED_INT`; every field that is read here has it.
const TYPE_UNSIGNED_INT: c_uint = 1;

type Simple32 = unsafe extern "C" fn(Device, *mut c_uint) -> Return;
type Simple64 = unsafe extern "C" fn(Device, *mut c_ulonglong) -> Return;
type Choice32 = unsafe extern "C" fn(Device, c_uint, *mut c_uint) -> Return;
type Text = unsafe extern "C" fn(Device, *mut c_char, c_uint) -> Return;

/// The loaded library, initialised; shut down when dropped.
#[derive(Debug)]
pub(super) struct Library {
    library: libloading::Library,
}

impl Library {
    /// Loads and initialises.
    pub(super) fn load(name: &str) -> Result<Library, TelemetryError> {
        // SAFETY: loading runs the initialisers of NVIDIA's driver library (or of what the user named in its place).
        let library = unsafe { libloading::Library::new(name) };
        let library = library.map_err(|source| TelemetryError::Library { library: name.to_owned(), source })?;
        let loaded = Library { library };
        // SAFETY: `nvmlReturn_t nvmlInit_v2(void)`.
        let init = unsafe { loaded.symbol::<unsafe extern "C" fn() -> Return>(c"nvmlInit_v2") };
        // SAFETY: as above; NVML counts initialisations, so another user in this process is not disturbed.
        let status = init.map_or(-1, |init| unsafe { init() });
        loaded.checked("nvmlInit_v2", status)?;
        Ok(loaded)
    }

    /// # Safety
    /// `T` must be the function's type.
    unsafe fn symbol<T: Copy>(&self, name: &CStr) -> Option<T> {
        // SAFETY: the caller vouches for the type; the pointer is used only while `self` keeps the library loaded.
        unsafe { self.library.get::<T>(name.to_bytes_with_nul()).ok().map(|symbol| *symbol) }
    }

    fn checked(&self, call: &'static str, status: Return) -> Result<(), TelemetryError> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: `const char *nvmlErrorString(nvmlReturn_t)`, a static string for any argument.
        let message = unsafe {
            self.symbol::<unsafe extern "C" fn(Return) -> *const c_char>(c"nvmlErrorString")
                .map(|of| of(status))
                .filter(|text| !text.is_null())
                .map(|text| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        Err(TelemetryError::Nvml { call, message: message.unwrap_or_else(|| format!("error {status}")) })
    }

    pub(super) fn device_count(&self) -> Result<u32, TelemetryError> {
        let mut count: c_uint = 0;
        // SAFETY: `nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *)`; the pointer is valid for the call.
        let status = unsafe {
            self.symbol::<unsafe extern "C" fn(*mut c_uint) -> Return>(c"nvmlDeviceGetCount_v2").map_or(-1, |get| get(&raw mut count))
        };
        self.checked("nvmlDeviceGetCount_v2", status).map(|()| count)
    }

    pub(super) fn device(&self, index: u32) -> Result<Device, TelemetryError> {
        let mut device = Device(ptr::null_mut());
        // SAFETY: `nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int, nvmlDevice_t *)`; a handle is one pointer.
        let status = unsafe {
            let get = self.symbol::<unsafe extern "C" fn(c_uint, *mut *mut std::ffi::c_void) -> Return>(c"nvmlDeviceGetHandleByIndex_v2");
            get.map_or(-1, |get| get(index, &raw mut device.0))
        };
        self.checked("nvmlDeviceGetHandleByIndex_v2", status).map(|()| device)
    }

    pub(super) fn uuid(&self, device: Device) -> Option<String> {
        self.text(c"nvmlDeviceGetUUID", device)
    }

    pub(super) fn name(&self, device: Device) -> Option<String> {
        self.text(c"nvmlDeviceGetName", device)
    }

    fn text(&self, function: &CStr, device: Device) -> Option<String> {
        let mut buffer = [0u8; 128];
        // SAFETY: `nvmlReturn_t f(nvmlDevice_t, char *, unsigned int length)`; the last byte stays zero whatever is written.
        let status = unsafe { self.symbol::<Text>(function)?(device, buffer.as_mut_ptr().cast(), 127) };
        let text = CStr::from_bytes_until_nul(&buffer).ok()?;
        (status == SUCCESS).then(|| text.to_string_lossy().into_owned())
    }

    fn number32(&self, function: &CStr, device: Device) -> Option<f64> {
        let mut value: c_uint = 0;
        // SAFETY: `nvmlReturn_t f(nvmlDevice_t, unsigned int *)`.
        let status = unsafe { self.symbol::<Simple32>(function)?(device, &raw mut value) };
        (status == SUCCESS).then_some(f64::from(value))
    }

    fn number64(&self, function: &CStr, device: Device) -> Option<f64> {
        let mut value: c_ulonglong = 0;
        // SAFETY: `nvmlReturn_t f(nvmlDevice_t, unsigned long long *)`.
        let status = unsafe { self.symbol::<Simple64>(function)?(device, &raw mut value) };
        (status == SUCCESS).then_some(value as f64)
    }

    fn choice32(&self, function: &CStr, device: Device, choice: c_uint) -> Option<f64> {
        let mut value: c_uint = 0;
        // SAFETY: `nvmlReturn_t f(nvmlDevice_t, enum, unsigned int *)`; C's enums are of an int's size.
        let status = unsafe { self.symbol::<Choice32>(function)?(device, choice, &raw mut value) };
        (status == SUCCESS).then_some(f64::from(value))
    }

    /// `nvmlDeviceGetTotalEccErrors`: kind 0 corrected, 1 uncorrected; counter 0 since the driver was loaded, 1 in the device's life.
    fn ecc(&self, device: Device, kind: c_uint, counter: c_uint) -> Option<f64> {
        type Ecc = unsafe extern "C" fn(Device, c_uint, c_uint, *mut c_ulonglong) -> Return;
        let mut value: c_ulonglong = 0;
        // SAFETY: `nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t, enum, enum, unsigned long long *)`.
        let status = unsafe { self.symbol::<Ecc>(c"nvmlDeviceGetTotalEccErrors")?(device, kind, counter, &raw mut value) };
        (status == SUCCESS).then_some(value as f64)
    }

    fn utilization(&self, device: Device) -> Option<Utilization> {
        let mut value = Utilization::default();
        // SAFETY: `nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t, nvmlUtilization_t *)`.
        let status = unsafe {
            self.symbol::<unsafe extern "C" fn(Device, *mut Utilization) -> Return>(c"nvmlDeviceGetUtilizationRates")?(
                device,
                &raw mut value,
            )
        };
        (status == SUCCESS).then_some(value)
    }

    fn memory(&self, device: Device) -> Option<Memory> {
        let mut value = Memory::default();
        // SAFETY: `nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t, nvmlMemory_t *)`.
        let status = unsafe {
            self.symbol::<unsafe extern "C" fn(Device, *mut Memory) -> Return>(c"nvmlDeviceGetMemoryInfo")?(device, &raw mut value)
        };
        (status == SUCCESS).then_some(value)
    }

    /// Time lost to a limit, us: policy 0 is power, 1 is temperature.
    fn violation_us(&self, device: Device, policy: c_uint) -> Option<f64> {
        type Violation = unsafe extern "C" fn(Device, c_uint, *mut ViolationTime) -> Return;
        let mut value = ViolationTime::default();
        // SAFETY: `nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t, enum, nvmlViolationTime_t *)`.
        let status = unsafe { self.symbol::<Violation>(c"nvmlDeviceGetViolationStatus")?(device, policy, &raw mut value) };
        (status == SUCCESS).then(|| value.violation as f64 / 1e3)
    }

    /// Encoder and decoder answer with their sampling period beside the utilisation.
    fn codec(&self, function: &CStr, device: Device) -> Option<f64> {
        let (mut value, mut period): (c_uint, c_uint) = (0, 0);
        type Codec = unsafe extern "C" fn(Device, *mut c_uint, *mut c_uint) -> Return;
        // SAFETY: `nvmlReturn_t f(nvmlDevice_t, unsigned int *, unsigned int *)`.
        let status = unsafe { self.symbol::<Codec>(function)?(device, &raw mut value, &raw mut period) };
        (status == SUCCESS).then_some(f64::from(value))
    }

    /// Unsigned values of fields that have no function of their own.
    fn fields<const N: usize>(&self, device: Device, ids: [c_uint; N]) -> [Option<f64>; N] {
        type Fields = unsafe extern "C" fn(Device, c_int, *mut FieldValue) -> Return;
        let mut values = ids.map(|field_id| FieldValue { field_id, ..FieldValue::default() });
        let Ok(count) = c_int::try_from(N) else { return ids.map(|_| None) };
        // SAFETY: `nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t, int, nvmlFieldValue_t *)` with as many as it says.
        let status =
            unsafe { self.symbol::<Fields>(c"nvmlDeviceGetFieldValues").map_or(-1, |get| get(device, count, values.as_mut_ptr())) };
        values.map(|value| {
            let is_there = status == SUCCESS && value.status == SUCCESS && value.value_type == TYPE_UNSIGNED_INT;
            let [a, b, c, d, ..] = value.value;
            is_there.then(|| f64::from(u32::from_ne_bytes([a, b, c, d])))
        })
    }

    /// What changes from moment to moment.
    pub(super) fn fast_values(&self, device: Device, out: &mut Vec<(&'static str, f64)>) {
        let mut put = |name, value: Option<f64>| out.extend(value.map(|value| (name, value)));
        put("power_w", self.number32(c"nvmlDeviceGetPowerUsage", device).map(|mw| mw / 1e3));
        put("energy_j", self.number64(c"nvmlDeviceGetTotalEnergyConsumption", device).map(|mj| mj / 1e3));
        let [memory_temperature, instant] = self.fields(device, [FIELD_MEMORY_TEMP, FIELD_POWER_INSTANT]);
        put("power_instant_w", instant.map(|mw| mw / 1e3));
        if let Some(rates) = self.utilization(device) {
            put("gpu_utilization_percent", Some(f64::from(rates.gpu)));
            put("memory_utilization_percent", Some(f64::from(rates.memory)));
        }
        if let Some(memory) = self.memory(device) {
            put("memory_total_bytes", Some(memory.total as f64));
            put("memory_used_bytes", Some(memory.used as f64));
            put("memory_free_bytes", Some(memory.free as f64));
        }
        put("temperature_c", self.choice32(c"nvmlDeviceGetTemperature", device, 0));
        // Devices without a sensor in their memory answer zero.
        put("memory_temperature_c", memory_temperature.filter(|degrees| *degrees > 0.0));
        put("sm_clock_mhz", self.choice32(c"nvmlDeviceGetClockInfo", device, 1));
        put("memory_clock_mhz", self.choice32(c"nvmlDeviceGetClockInfo", device, 2));
        let events = self.number64(c"nvmlDeviceGetCurrentClocksEventReasons", device);
        put("throttle_reasons", events.or_else(|| self.number64(c"nvmlDeviceGetCurrentClocksThrottleReasons", device)));
    }

    /// What changes rarely or takes long to ask.
    pub(super) fn slow_values(&self, device: Device, out: &mut Vec<(&'static str, f64)>) {
        let mut put = |name, value: Option<f64>| out.extend(value.map(|value| (name, value)));
        put("power_limit_w", self.number32(c"nvmlDeviceGetEnforcedPowerLimit", device).map(|mw| mw / 1e3));
        put("power_throttle_us", self.violation_us(device, 0));
        put("thermal_throttle_us", self.violation_us(device, 1));
        put("encoder_utilization_percent", self.codec(c"nvmlDeviceGetEncoderUtilization", device));
        put("decoder_utilization_percent", self.codec(c"nvmlDeviceGetDecoderUtilization", device));
        put("ecc_corrected_volatile", self.ecc(device, 0, 0));
        put("ecc_uncorrected_volatile", self.ecc(device, 1, 0));
        put("ecc_corrected_aggregate", self.ecc(device, 0, 1));
        put("ecc_uncorrected_aggregate", self.ecc(device, 1, 1));
        put("pcie_tx_kb_per_s", self.choice32(c"nvmlDeviceGetPcieThroughput", device, 0));
        put("pcie_rx_kb_per_s", self.choice32(c"nvmlDeviceGetPcieThroughput", device, 1));
        put("pcie_replays", self.number32(c"nvmlDeviceGetPcieReplayCounter", device));
        put("pcie_link_generation", self.number32(c"nvmlDeviceGetCurrPcieLinkGeneration", device));
        put("pcie_link_width", self.number32(c"nvmlDeviceGetCurrPcieLinkWidth", device));
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: `nvmlReturn_t nvmlShutdown(void)`, once for the one initialisation.
        unsafe {
            if let Some(shutdown) = self.symbol::<unsafe extern "C" fn() -> Return>(c"nvmlShutdown") {
                shutdown();
            }
        }
    }
}
