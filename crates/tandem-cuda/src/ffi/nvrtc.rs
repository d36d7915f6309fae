//! `libnvrtc`: the functions of `nvrtc.h` that are used.

use std::ffi::{c_char, c_int, c_void};

/// `nvrtcProgram`.
pub(crate) type Handle = *mut c_void;

super::functions!(
    /// The run-time compiler.
    Nvrtc, "NVRTC", ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"], {
    version = "nvrtcVersion"(*mut c_int, *mut c_int) -> c_int;
    error_string = "nvrtcGetErrorString"(c_int) -> *const c_char;
    create = "nvrtcCreateProgram"(*mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> c_int;
    destroy = "nvrtcDestroyProgram"(*mut Handle) -> c_int;
    compile = "nvrtcCompileProgram"(Handle, c_int, *const *const c_char) -> c_int;
    cubin_size = "nvrtcGetCUBINSize"(Handle, *mut usize) -> c_int;
    cubin = "nvrtcGetCUBIN"(Handle, *mut c_char) -> c_int;
    log_size = "nvrtcGetProgramLogSize"(Handle, *mut usize) -> c_int;
    log = "nvrtcGetProgramLog"(Handle, *mut c_char) -> c_int;
});
