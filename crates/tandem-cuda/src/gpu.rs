//! One GPU: its facts, its memory, its stream, graphs of launches, events.

#![expect(unsafe_code, reason = "the driver's functions are called")]

use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::rc::Rc;

use half::bf16;

use crate::error::CudaError;
use crate::ffi::driver::{self, Driver, Handle, Pointer, TensorMapWords};

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Name, e.g. `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of L2 cache.
    pub l2_bytes: usize,
    /// CUDA version of the driver, e.g. 13000.
    pub driver_cuda: i32,
}

/// One GPU, used on the thread that opened it: its primary context and one stream, on which everything happens in order.
#[derive(Debug, Clone)]
pub struct Gpu(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    driver: Driver,
    device: c_int,
    stream: Handle,
    facts: Facts,
}

impl Gpu {
    /// Opens the driver and GPU number `ordinal` of those that it shows.
    ///
    /// # Errors
    /// [`CudaError::Missing`] without a driver, [`CudaError::NoDevice`], or what the driver says.
    pub fn open(ordinal: i32) -> Result<Self, CudaError> {
        let driver = Driver::open()?;
        let ok = |call, status| checked(&driver, call, status);
        let (mut count, mut device, mut driver_cuda) = (0, 0, 0);
        let mut name = [0; 256];
        // SAFETY: every pointer is to a local that outlives the call; the name's length is that of the array.
        unsafe {
            ok("cuInit", (driver.init)(0))?;
            ok("cuDriverGetVersion", (driver.driver_version)(&raw mut driver_cuda))?;
            ok("cuDeviceGetCount", (driver.device_count)(&raw mut count))?;
            if !(0..count).contains(&ordinal) {
                return Err(CudaError::NoDevice { ordinal, count });
            }
            ok("cuDeviceGet", (driver.device_get)(&raw mut device, ordinal))?;
            ok("cuDeviceGetName", (driver.device_name)(name.as_mut_ptr(), 256, device))?;
        }
        let attribute = |which: c_int| {
            let mut value = 0;
            // SAFETY: the pointer is to a local.
            ok("cuDeviceGetAttribute", unsafe { (driver.device_attribute)(&raw mut value, which, device) }).map(|()| value)
        };
        let facts = Facts {
            // SAFETY: the driver ends the name with a zero within the array.
            name: unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned(),
            capability: (attribute(driver::CAPABILITY_MAJOR)?, attribute(driver::CAPABILITY_MINOR)?),
            multiprocessors: attribute(driver::MULTIPROCESSOR_COUNT)?.unsigned_abs(),
            l2_bytes: usize::try_from(attribute(driver::L2_CACHE_SIZE)?).unwrap_or(0),
            driver_cuda,
        };
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: pointers are to locals; the context was retained before it is made current. Flag 0: the stream waits for synchronous copies.
        unsafe {
            ok("cuDevicePrimaryCtxRetain", (driver.context_retain)(&raw mut context, device))?;
            ok("cuCtxSetCurrent", (driver.context_set)(context))?;
            ok("cuStreamCreate", (driver.stream_create)(&raw mut stream, 0))?;
        }
        Ok(Gpu(Rc::new(Inner { driver, device, stream, facts })))
    }

    /// Its facts.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Nothing for a Hopper GPU.
    ///
    /// # Errors
    /// [`CudaError::NotHopper`].
    pub fn require_hopper(&self) -> Result<(), CudaError> {
        let (major, minor) = self.0.facts.capability;
        if (major, minor) == (9, 0) { Ok(()) } else { Err(CudaError::NotHopper { name: self.0.facts.name.clone(), major, minor }) }
    }

    /// Bytes of memory that are free, and all.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to locals.
        self.ok("cuMemGetInfo", unsafe { (self.driver().memory_info)(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }

    /// Waits until everything on the stream is done.
    ///
    /// # Errors
    /// What any of it ended with.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as `self`.
        self.ok("cuStreamSynchronize", unsafe { (self.driver().stream_synchronize)(self.stream()) })
    }

    /// `n` elements, not initialised.
    ///
    /// # Errors
    /// Out of memory, or what else the driver says.
    pub fn alloc<T: Element>(&self, n: usize) -> Result<Buffer<T>, CudaError> {
        let mut pointer = 0;
        // SAFETY: the pointer is to a local.
        self.ok("cuMemAlloc", unsafe { (self.driver().alloc)(&raw mut pointer, (n * size_of::<T>()).max(1)) })?;
        Ok(Buffer { gpu: self.clone(), pointer, n, of: PhantomData })
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As of [`Gpu::alloc`].
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer<T>, CudaError> {
        let buffer = self.alloc::<T>(values.len())?;
        // SAFETY: the buffer has as many bytes as the slice.
        let status = unsafe { (self.driver().copy_in)(buffer.pointer, values.as_ptr().cast(), size_of_val(values)) };
        self.ok("cuMemcpyHtoD", status)?;
        Ok(buffer)
    }

    /// What `launches` puts on the stream, as one graph.
    ///
    /// # Errors
    /// What `launches` or the driver says.
    pub fn capture<E: From<CudaError>>(&self, launches: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        let driver = self.driver();
        let (mut graph, mut exec) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the stream is alive and not capturing: a capture ends below, whatever happens.
        self.ok("cuStreamBeginCapture", unsafe { (driver.capture_begin)(self.stream(), driver::CAPTURE_THREAD_LOCAL) })?;
        let launched = launches();
        // SAFETY: the pointer is to a local, and this stream is capturing.
        let ended = self.ok("cuStreamEndCapture", unsafe { (driver.capture_end)(self.stream(), &raw mut graph) });
        if launched.is_err() && !graph.is_null() {
            // SAFETY: made by this capture and not used.
            unsafe { (driver.graph_destroy)(graph) };
        }
        launched?;
        ended?;
        // SAFETY: the graph was just made; it is not needed once it has been instantiated.
        let made = unsafe { (driver.graph_instantiate)(&raw mut exec, graph, 0) };
        // SAFETY: as above.
        unsafe { (driver.graph_destroy)(graph) };
        self.ok("cuGraphInstantiate", made)?;
        Ok(Graph { gpu: self.clone(), exec })
    }

    /// An event.
    ///
    /// # Errors
    /// What the driver says.
    pub fn event(&self) -> Result<Event, CudaError> {
        let mut event = ptr::null_mut();
        // SAFETY: the pointer is to a local.
        self.ok("cuEventCreate", unsafe { (self.driver().event_create)(&raw mut event, 0) })?;
        Ok(Event { gpu: self.clone(), event })
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.0.driver
    }

    pub(crate) fn stream(&self) -> Handle {
        self.0.stream
    }

    pub(crate) fn ok(&self, call: &'static str, status: c_int) -> Result<(), CudaError> {
        checked(self.driver(), call, status)
    }

    /// `cuTensorMapEncodeTiled` of two dimensions; elements and sizes as of [`crate::TensorMap`].
    pub(crate) fn encode_map(
        &self,
        kind: c_int,
        pointer: Pointer,
        dims: [u64; 2],
        row_bytes: u64,
        tile: [u32; 2],
    ) -> Result<TensorMapWords, CudaError> {
        let mut map = TensorMapWords([0; 16]);
        let steps = [1_u32, 1];
        // SAFETY: arrays have as many entries as the rank says (strides one fewer); the address is only encoded.
        let status = unsafe {
            (self.driver().tensor_map)(
                &raw mut map,
                kind,
                2,
                ptr::with_exposed_provenance_mut(usize::try_from(pointer).unwrap_or(usize::MAX)),
                dims.as_ptr(),
                &raw const row_bytes,
                tile.as_ptr(),
                steps.as_ptr(),
                0,
                driver::MAP_SWIZZLE_128B,
                driver::MAP_L2_256B,
                0,
            )
        };
        self.ok("cuTensorMapEncodeTiled", status)?;
        Ok(map)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: whatever uses the stream or the context holds a `Gpu` and is gone.
        unsafe {
            (self.driver.stream_destroy)(self.stream);
            (self.driver.context_release)(self.device);
        }
    }
}

fn checked(driver: &Driver, call: &'static str, code: c_int) -> Result<(), CudaError> {
    if code == 0 {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: the pointer is to a local; the text is static.
    let message = unsafe {
        (driver.error_string)(code, &raw mut text);
        if text.is_null() { "unknown error".to_owned() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    };
    Err(CudaError::Call { call, code, message })
}

/// Plain numbers that a GPU and this machine lay out alike: every pattern of bits is a value.
///
/// # Safety
/// Only for types without padding and without invalid patterns.
pub unsafe trait Element: Copy + Default {}
// SAFETY: plain numbers.
unsafe impl Element for u8 {}
// SAFETY: plain numbers.
unsafe impl Element for i32 {}
// SAFETY: plain numbers.
unsafe impl Element for u64 {}
// SAFETY: plain numbers.
unsafe impl Element for f32 {}
// SAFETY: sixteen bits, each pattern a number.
unsafe impl Element for bf16 {}

/// Memory on the GPU; freed when dropped.
#[derive(Debug)]
pub struct Buffer<T> {
    gpu: Gpu,
    pointer: Pointer,
    n: usize,
    of: PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Its address on the GPU.
    #[must_use]
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// The address of element `i`.
    ///
    /// # Panics
    /// When there is no such element.
    #[must_use]
    pub fn at(&self, i: usize) -> u64 {
        assert!(i < self.n, "element {i} of {}", self.n);
        self.pointer + (i * size_of::<T>()) as u64
    }

    /// Elements `from..from + n`, after what is on the stream.
    ///
    /// # Errors
    /// What the driver says, also of what is on the stream.
    ///
    /// # Panics
    /// When the buffer has fewer.
    pub fn read(&self, from: usize, n: usize) -> Result<Vec<T>, CudaError> {
        assert!(from + n <= self.n, "elements {from}..{} of {}", from + n, self.n);
        self.gpu.synchronize()?;
        let mut values = vec![T::default(); n];
        let at = self.pointer + (from * size_of::<T>()) as u64;
        // SAFETY: checked to lie within the buffer; the vector has as many bytes, and any bytes are values of `T`.
        let status = unsafe { (self.gpu.driver().copy_out)(values.as_mut_ptr().cast::<c_void>(), at, n * size_of::<T>()) };
        self.gpu.ok("cuMemcpyDtoH", status)?;
        Ok(values)
    }

    /// Makes every byte `byte`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn set_bytes(&self, byte: u8) -> Result<(), CudaError> {
        // SAFETY: within the buffer.
        let status = unsafe { (self.gpu.driver().set_bytes)(self.pointer, byte, self.n * size_of::<T>()) };
        self.gpu.ok("cuMemsetD8", status)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated here and freed once. Freeing waits for what still uses it; an error then shows at the next call.
        unsafe { (self.gpu.driver().free)(self.pointer) };
    }
}

/// Launches that are repeated as one.
#[derive(Debug)]
pub struct Graph {
    gpu: Gpu,
    exec: Handle,
}

impl Graph {
    /// Puts all of it on the stream. What it uses must still be there.
    ///
    /// # Errors
    /// What the driver says.
    pub fn launch(&self) -> Result<(), CudaError> {
        // SAFETY: instantiated for this context; the stream is alive.
        self.gpu.ok("cuGraphLaunch", unsafe { (self.gpu.driver().graph_launch)(self.exec, self.gpu.stream()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made here and destroyed once.
        unsafe { (self.gpu.driver().graph_exec_destroy)(self.exec) };
    }
}

/// A moment on the stream.
#[derive(Debug)]
pub struct Event {
    gpu: Gpu,
    event: Handle,
}

impl Event {
    /// Marks the moment when everything so far on the stream is done.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record(&self) -> Result<(), CudaError> {
        // SAFETY: both belong to this context and are alive.
        self.gpu.ok("cuEventRecord", unsafe { (self.gpu.driver().event_record)(self.event, self.gpu.stream()) })
    }

    /// Seconds from this moment to `later`, once that has come.
    ///
    /// # Errors
    /// What anything between them ended with.
    pub fn seconds_to(&self, later: &Event) -> Result<f64, CudaError> {
        let (driver, mut ms) = (self.gpu.driver(), 0.0);
        // SAFETY: both events are alive; the pointer is to a local.
        self.gpu.ok("cuEventSynchronize", unsafe { (driver.event_synchronize)(later.event) })?;
        // SAFETY: as above.
        self.gpu.ok("cuEventElapsedTime", unsafe { (driver.event_elapsed)(&raw mut ms, self.event, later.event) })?;
        Ok(f64::from(ms) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made here and destroyed once.
        unsafe { (self.gpu.driver().event_destroy)(self.event) };
    }
}
