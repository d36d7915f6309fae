//! `libcublasLt`: the functions and constants of `cublasLt.h` that are used.

use std::ffi::{c_char, c_int, c_void};

/// Any of the library's opaque handles.
pub(crate) type Handle = *mut c_void;

/// `CUBLAS_COMPUTE_32F`.
pub(crate) const COMPUTE_F32: c_int = 68;
/// `CUDA_R_32F`, `CUDA_R_16BF`, `CUDA_R_8F_E4M3`.
pub(crate) const F32: c_int = 0;
pub(crate) const BF16: c_int = 14;
pub(crate) const E4M3: c_int = 28;
/// `CUBLASLT_MATMUL_DESC_…`.
pub(crate) const DESC_TRANSA: c_int = 3;
pub(crate) const DESC_TRANSB: c_int = 4;
pub(crate) const DESC_A_SCALE_POINTER: c_int = 17;
pub(crate) const DESC_B_SCALE_POINTER: c_int = 18;
pub(crate) const DESC_FAST_ACCUM: c_int = 25;
pub(crate) const DESC_A_SCALE_MODE: c_int = 31;
pub(crate) const DESC_B_SCALE_MODE: c_int = 32;
/// `CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F`, `…_BLK128x128_32F` (12.9 and later).
pub(crate) const SCALE_VEC128: c_int = 4;
pub(crate) const SCALE_BLOCK128: c_int = 5;
/// `CUBLASLT_MATRIX_LAYOUT_…`.
pub(crate) const LAYOUT_BATCH_COUNT: c_int = 5;
pub(crate) const LAYOUT_BATCH_STRIDE: c_int = 6;
/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES`.
pub(crate) const PREF_WORKSPACE: c_int = 1;

/// `cublasLtMatmulAlgo_t`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Algorithm(pub(crate) [u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Heuristic {
    pub(crate) algorithm: Algorithm,
    pub(crate) workspace: usize,
    pub(crate) state: c_int,
    pub(crate) waves: f32,
    reserved: [c_int; 4],
}

super::functions!(
    /// cuBLASLt.
    CublasLt, "cuBLASLt", ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"], {
    create = "cublasLtCreate"(*mut Handle) -> c_int;
    destroy = "cublasLtDestroy"(Handle) -> c_int;
    version = "cublasLtGetVersion"() -> usize;
    status_string = "cublasLtGetStatusString"(c_int) -> *const c_char;
    desc_create = "cublasLtMatmulDescCreate"(*mut Handle, c_int, c_int) -> c_int;
    desc_destroy = "cublasLtMatmulDescDestroy"(Handle) -> c_int;
    desc_set = "cublasLtMatmulDescSetAttribute"(Handle, c_int, *const c_void, usize) -> c_int;
    layout_create = "cublasLtMatrixLayoutCreate"(*mut Handle, c_int, u64, u64, i64) -> c_int;
    layout_destroy = "cublasLtMatrixLayoutDestroy"(Handle) -> c_int;
    layout_set = "cublasLtMatrixLayoutSetAttribute"(Handle, c_int, *const c_void, usize) -> c_int;
    preference_create = "cublasLtMatmulPreferenceCreate"(*mut Handle) -> c_int;
    preference_destroy = "cublasLtMatmulPreferenceDestroy"(Handle) -> c_int;
    preference_set = "cublasLtMatmulPreferenceSetAttribute"(Handle, c_int, *const c_void, usize) -> c_int;
    heuristic = "cublasLtMatmulAlgoGetHeuristic"(Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Heuristic, *mut c_int) -> c_int;
    matmul = "cublasLtMatmul"(Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void, *const c_void, Handle, *mut c_void, Handle, *const Algorithm, *mut c_void, usize, Handle) -> c_int;
});
