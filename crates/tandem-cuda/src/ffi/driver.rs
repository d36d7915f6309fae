//! `libcuda`: the functions and constants of `cuda.h` (12.0 and later) that are used.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `CUcontext`, `CUstream`, `CUevent`, `CUgraph`, `CUgraphExec`, `CUmodule`, `CUfunction`: opaque.
pub(crate) type Handle = *mut c_void;
/// `CUdeviceptr`.
pub(crate) type Pointer = u64;

/// `CU_DEVICE_ATTRIBUTE_…`.
pub(crate) const MULTIPROCESSOR_COUNT: c_int = 16;
pub(crate) const L2_CACHE_SIZE: c_int = 38;
pub(crate) const CAPABILITY_MAJOR: c_int = 75;
pub(crate) const CAPABILITY_MINOR: c_int = 76;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(crate) const MAX_DYNAMIC_SHARED: c_int = 8;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
pub(crate) const CAPTURE_THREAD_LOCAL: c_int = 1;
/// `CU_TENSOR_MAP_…`.
pub(crate) const MAP_UINT8: c_int = 0;
pub(crate) const MAP_BFLOAT16: c_int = 9;
pub(crate) const MAP_SWIZZLE_128B: c_int = 3;
pub(crate) const MAP_L2_256B: c_int = 3;

/// `CUtensorMap`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TensorMapWords(pub(crate) [u64; 16]);

super::functions!(
    /// The driver.
    Driver, "CUDA driver", ["libcuda.so.1", "libcuda.so"], {
    init = "cuInit"(c_uint) -> c_int;
    driver_version = "cuDriverGetVersion"(*mut c_int) -> c_int;
    error_string = "cuGetErrorString"(c_int, *mut *const c_char) -> c_int;
    device_count = "cuDeviceGetCount"(*mut c_int) -> c_int;
    device_get = "cuDeviceGet"(*mut c_int, c_int) -> c_int;
    device_name = "cuDeviceGetName"(*mut c_char, c_int, c_int) -> c_int;
    device_attribute = "cuDeviceGetAttribute"(*mut c_int, c_int, c_int) -> c_int;
    context_retain = "cuDevicePrimaryCtxRetain"(*mut Handle, c_int) -> c_int;
    context_release = "cuDevicePrimaryCtxRelease_v2"(c_int) -> c_int;
    context_set = "cuCtxSetCurrent"(Handle) -> c_int;
    memory_info = "cuMemGetInfo_v2"(*mut usize, *mut usize) -> c_int;
    alloc = "cuMemAlloc_v2"(*mut Pointer, usize) -> c_int;
    free = "cuMemFree_v2"(Pointer) -> c_int;
    copy_in = "cuMemcpyHtoD_v2"(Pointer, *const c_void, usize) -> c_int;
    copy_out = "cuMemcpyDtoH_v2"(*mut c_void, Pointer, usize) -> c_int;
    set_bytes = "cuMemsetD8_v2"(Pointer, u8, usize) -> c_int;
    stream_create = "cuStreamCreate"(*mut Handle, c_uint) -> c_int;
    stream_destroy = "cuStreamDestroy_v2"(Handle) -> c_int;
    stream_synchronize = "cuStreamSynchronize"(Handle) -> c_int;
    capture_begin = "cuStreamBeginCapture_v2"(Handle, c_int) -> c_int;
    capture_end = "cuStreamEndCapture"(Handle, *mut Handle) -> c_int;
    graph_instantiate = "cuGraphInstantiateWithFlags"(*mut Handle, Handle, u64) -> c_int;
    graph_launch = "cuGraphLaunch"(Handle, Handle) -> c_int;
    graph_exec_destroy = "cuGraphExecDestroy"(Handle) -> c_int;
    graph_destroy = "cuGraphDestroy"(Handle) -> c_int;
    event_create = "cuEventCreate"(*mut Handle, c_uint) -> c_int;
    event_destroy = "cuEventDestroy_v2"(Handle) -> c_int;
    event_record = "cuEventRecord"(Handle, Handle) -> c_int;
    event_synchronize = "cuEventSynchronize"(Handle) -> c_int;
    event_elapsed = "cuEventElapsedTime"(*mut f32, Handle, Handle) -> c_int;
    module_load = "cuModuleLoadData"(*mut Handle, *const c_void) -> c_int;
    module_unload = "cuModuleUnload"(Handle) -> c_int;
    module_function = "cuModuleGetFunction"(*mut Handle, Handle, *const c_char) -> c_int;
    module_global = "cuModuleGetGlobal_v2"(*mut Pointer, *mut usize, Handle, *const c_char) -> c_int;
    function_attribute = "cuFuncSetAttribute"(Handle, c_int, c_int) -> c_int;
    launch = "cuLaunchKernel"(Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void) -> c_int;
    tensor_map = "cuTensorMapEncodeTiled"(*mut TensorMapWords, c_int, c_uint, *mut c_void, *const u64, *const u64, *const c_uint, *const c_uint, c_int, c_int, c_int, c_int) -> c_int;
});
