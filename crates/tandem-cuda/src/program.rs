//! Kernels: compiled by NVRTC, loaded, launched; and descriptions of tensors for the copy engine.

#![expect(unsafe_code, reason = "NVRTC and the driver are called")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use crate::error::{CudaError, fits};
use crate::ffi::driver::{self, Handle, TensorMapWords};
use crate::ffi::nvrtc::{self, Nvrtc};
use crate::gpu::{Buffer, Element, Gpu};

/// Machine code of a program for Hopper (`sm_90a`). Needs no GPU.
///
/// # Errors
/// [`CudaError::Missing`] without NVRTC, [`CudaError::Compile`] with the compiler's words.
pub fn compile(name: &str, source: &str) -> Result<Vec<u8>, CudaError> {
    let nvrtc = Nvrtc::open()?;
    let said = |call, code| {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: a static text for any status.
        let message = unsafe { CStr::from_ptr((nvrtc.error_string)(code)) }.to_string_lossy().into_owned();
        Err(CudaError::Call { call, code, message })
    };
    let no_zero = |_| CudaError::Compile { name: name.to_owned(), log: "the source holds a zero byte".to_owned() };
    let (text, label) = (CString::new(source).map_err(no_zero)?, CString::new(name).map_err(no_zero)?);
    let options = [c"--gpu-architecture=sm_90a", c"--std=c++17", c"-default-device"];
    let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program: nvrtc::Handle = ptr::null_mut();
    // SAFETY: pointers are to locals that outlive the calls; buffers have the sizes that NVRTC names; the program is destroyed once.
    unsafe {
        said("nvrtcCreateProgram", (nvrtc.create)(&raw mut program, text.as_ptr(), label.as_ptr(), 0, ptr::null(), ptr::null()))?;
        let compiled = (nvrtc.compile)(program, fits("options", options.len())?, options.as_ptr());
        let mut cubin = Vec::new();
        let made = if compiled == 0 {
            let mut size = 0;
            said("nvrtcGetCUBINSize", (nvrtc.cubin_size)(program, &raw mut size)).and_then(|()| {
                cubin.resize(size, 0_u8);
                said("nvrtcGetCUBIN", (nvrtc.cubin)(program, cubin.as_mut_ptr().cast()))
            })
        } else {
            let mut size = 0;
            (nvrtc.log_size)(program, &raw mut size);
            let mut log = vec![0_u8; size];
            (nvrtc.log)(program, log.as_mut_ptr().cast());
            Err(CudaError::Compile { name: name.to_owned(), log: String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned() })
        };
        (nvrtc.destroy)(&raw mut program);
        made.map(|()| cubin)
    }
}

/// The version of NVRTC.
pub(crate) fn nvrtc_version() -> Result<(i32, i32), CudaError> {
    let (nvrtc, mut version) = (Nvrtc::open()?, (0, 0));
    // SAFETY: the pointers are to locals. It cannot fail with valid pointers.
    unsafe { (nvrtc.version)(&raw mut version.0, &raw mut version.1) };
    Ok(version)
}

/// A program on a GPU.
#[derive(Debug)]
pub struct Program {
    gpu: Gpu,
    module: Handle,
}

impl Program {
    /// Loads machine code.
    ///
    /// # Errors
    /// What the driver says.
    pub fn load(gpu: &Gpu, cubin: &[u8]) -> Result<Self, CudaError> {
        let mut module = ptr::null_mut();
        // SAFETY: the image is one that NVRTC made; its length is in its header.
        gpu.ok("cuModuleLoadData", unsafe { (gpu.driver().module_load)(&raw mut module, cubin.as_ptr().cast()) })?;
        Ok(Program { gpu: gpu.clone(), module })
    }

    /// The kernel of that name, allowed `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// What the driver says, for example that there is none.
    pub fn kernel(&self, name: &CStr, shared_bytes: u32) -> Result<Kernel, CudaError> {
        let mut function = ptr::null_mut();
        let driver = self.gpu.driver();
        // SAFETY: the pointer is to a local; the module is loaded.
        self.gpu.ok("cuModuleGetFunction", unsafe { (driver.module_function)(&raw mut function, self.module, name.as_ptr()) })?;
        let bytes = c_int::try_from(shared_bytes).unwrap_or(c_int::MAX);
        // SAFETY: the function was just found.
        self.gpu.ok("cuFuncSetAttribute", unsafe { (driver.function_attribute)(function, driver::MAX_DYNAMIC_SHARED, bytes) })?;
        Ok(Kernel { gpu: self.gpu.clone(), function, shared_bytes })
    }

    /// The value of a global `int`.
    ///
    /// # Errors
    /// What the driver says, for example that there is none.
    pub fn global(&self, name: &CStr) -> Result<i32, CudaError> {
        let (mut pointer, mut size, mut value) = (0, 0, 0_i32);
        let driver = self.gpu.driver();
        // SAFETY: pointers are to locals; no more than the global's four bytes are copied.
        unsafe {
            self.gpu.ok("cuModuleGetGlobal", (driver.module_global)(&raw mut pointer, &raw mut size, self.module, name.as_ptr()))?;
            assert_eq!(size, 4, "{name:?} is an int");
            self.gpu.ok("cuMemcpyDtoH", (driver.copy_out)((&raw mut value).cast(), pointer, 4))?;
        }
        Ok(value)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: loaded here and unloaded once.
        unsafe { (self.gpu.driver().module_unload)(self.module) };
    }
}

/// How many threads: blocks in three dimensions, threads a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    /// An address on the GPU; 0 for none.
    Pointer(u64),
    /// `int`.
    I32(i32),
    /// 64 bits.
    U64(u64),
    /// `float`.
    F32(f32),
    /// A `__grid_constant__` tensor map.
    Map(&'a TensorMap),
}

/// A kernel of a program, which must stay loaded.
#[derive(Debug)]
pub struct Kernel {
    gpu: Gpu,
    function: Handle,
    shared_bytes: u32,
}

impl Kernel {
    /// Puts a launch on the stream.
    ///
    /// # Safety
    /// The arguments must be what the kernel takes, in number, order and type, and what they point to must be as large as the kernel
    /// assumes and stay until it has run.
    ///
    /// # Errors
    /// What the driver says of the launch; what happens in the kernel shows later.
    pub unsafe fn launch(&self, launch: Launch, args: &[Arg<'_>]) -> Result<(), CudaError> {
        let pointer = |arg: &Arg<'_>| -> *mut c_void {
            match arg {
                Arg::Pointer(v) | Arg::U64(v) => ptr::from_ref(v).cast_mut().cast(),
                Arg::I32(v) => ptr::from_ref(v).cast_mut().cast(),
                Arg::F32(v) => ptr::from_ref(v).cast_mut().cast(),
                Arg::Map(map) => ptr::from_ref(&map.0).cast_mut().cast(),
            }
        };
        let mut pointers: Vec<*mut c_void> = args.iter().map(pointer).collect();
        let [x, y, z] = launch.grid;
        let driver = self.gpu.driver();
        // SAFETY: the driver copies the arguments before it returns; that they fit is the caller's promise.
        let status = unsafe {
            (driver.launch)(
                self.function,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                self.shared_bytes,
                self.gpu.stream(),
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.gpu.ok("cuLaunchKernel", status)
    }
}

/// A matrix in memory as the copy engine sees it: tiles of it come swizzled over 128 bytes.
#[derive(Debug, Clone, Copy)]
pub struct TensorMap(TensorMapWords);

impl TensorMap {
    /// Of a matrix `[rows][columns]` of e4m3 (one byte a value) or BF16 (two), in tiles of `tile` = (columns, rows); a tile's row is 128 bytes.
    ///
    /// # Errors
    /// What the driver says of the sizes.
    ///
    /// # Panics
    /// When the buffer is smaller than the matrix.
    pub fn of<T: Element>(gpu: &Gpu, matrix: &Buffer<T>, columns: usize, rows: usize, tile: [u32; 2]) -> Result<Self, CudaError> {
        assert!(rows * columns <= matrix.len(), "a matrix of {rows} x {columns} in {} elements", matrix.len());
        let kind = if size_of::<T>() == 1 { driver::MAP_UINT8 } else { driver::MAP_BFLOAT16 };
        let row_bytes = (columns * size_of::<T>()) as u64;
        Ok(TensorMap(gpu.encode_map(kind, matrix.pointer(), [columns as u64, rows as u64], row_bytes, tile)?))
    }
}
