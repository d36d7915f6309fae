//! Dense matrix products by cuBLASLt: BF16, FP8 with one scale, FP8 with DeepSeek's block scales.

#![expect(unsafe_code, reason = "cuBLASLt is called")]

use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::rc::Rc;

use crate::error::{CudaError, fits};
use crate::ffi::cublaslt::{self as lt, CublasLt, Handle, Heuristic};
use crate::gpu::{Buffer, Gpu};

/// Bytes that an algorithm may use beside its operands.
const WORKSPACE: usize = 64 << 20;
/// Algorithms that are asked for.
const MAX_ALGORITHMS: usize = 8;

/// Number format of both operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// BF16.
    Bf16,
    /// FP8, e4m3.
    E4m3,
}

/// How FP8 operands are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// Not at all, or by 1.
    One,
    /// Rows of x by 128 columns, `[k/128][m]` f32; weights by blocks of 128 × 128, `[n/128][k/128 padded to a multiple of 4]` f32
    /// (CUDA 12.9 and later, Hopper only).
    Blocks,
}

/// `out[b]` `[m][n]` = `x[b]` `[m][k]` · `weights[b]` `[n][k]`ᵀ. Of `batch` products, x and out are `[m][batch][k]` and `[m][batch][n]`, weights `[batch][n][k]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of x; with block scales a multiple of 4.
    pub m: usize,
    /// Rows of the weights.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
    /// Products.
    pub batch: usize,
}

/// The library with a workspace on one GPU.
#[derive(Debug)]
pub struct Blas(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    lt: CublasLt,
    handle: Handle,
    gpu: Gpu,
    workspace: Buffer<u8>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: created here and destroyed once.
        unsafe { (self.lt.destroy)(self.handle) };
    }
}

impl Inner {
    fn ok(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        checked(&self.lt, call, code)
    }
}

fn checked(lt: &CublasLt, call: &'static str, code: c_int) -> Result<(), CudaError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: a static text for any status.
    let message = unsafe { CStr::from_ptr((lt.status_string)(code)) }.to_string_lossy().into_owned();
    Err(CudaError::Call { call, code, message })
}

impl Blas {
    /// Opens cuBLASLt.
    ///
    /// # Errors
    /// [`CudaError::Missing`] without it, or what it says.
    pub fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let lt = CublasLt::open()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a local; the GPU's context is current on this thread.
        checked(&lt, "cublasLtCreate", unsafe { (lt.create)(&raw mut handle) })?;
        Ok(Blas(Rc::new(Inner { lt, handle, gpu: gpu.clone(), workspace: gpu.alloc(WORKSPACE)? })))
    }

    /// Its version, e.g. 130100.
    #[must_use]
    pub fn version(&self) -> usize {
        // SAFETY: takes nothing.
        unsafe { (self.0.lt.version)() }
    }

    /// Prepares a product with BF16 results.
    ///
    /// # Errors
    /// [`CudaError::NoAlgorithm`], or what the library says.
    pub fn product(&self, dtype: Dtype, scales: Scales, shape: Shape) -> Result<Product, CudaError> {
        let blas = &self.0;
        let mut product = Product { blas: Rc::clone(blas), desc: ptr::null_mut(), layouts: [ptr::null_mut(); 3], algorithms: Vec::new() };
        // SAFETY: the pointer is to a field.
        let made = unsafe { (blas.lt.desc_create)(&raw mut product.desc, lt::COMPUTE_F32, lt::F32) };
        blas.ok("cublasLtMatmulDescCreate", made)?;
        // The library's matrices are column-major: its A is our weights, transposed, its B our x.
        product.set(lt::DESC_TRANSA, &1_i32)?;
        product.set(lt::DESC_TRANSB, &0_i32)?;
        match scales {
            Scales::Blocks => {
                product.set(lt::DESC_A_SCALE_MODE, &lt::SCALE_BLOCK128)?;
                product.set(lt::DESC_B_SCALE_MODE, &lt::SCALE_VEC128)?;
                // Algorithms are only found for scales that are somewhere; nothing is read yet.
                let anywhere = blas.workspace.pointer();
                product.set(lt::DESC_A_SCALE_POINTER, &anywhere)?;
                product.set(lt::DESC_B_SCALE_POINTER, &anywhere)?;
            }
            Scales::One if dtype == Dtype::E4m3 => product.set(lt::DESC_FAST_ACCUM, &1_i8)?,
            Scales::One => {}
        }
        let Shape { m, n, k, batch } = shape;
        let of = if dtype == Dtype::Bf16 { lt::BF16 } else { lt::E4M3 };
        let sides = [(of, k, n, k, n * k), (of, k, m, batch * k, k), (lt::BF16, n, m, batch * n, n)];
        for (layout, (of, rows, columns, step, stride)) in product.layouts.iter_mut().zip(sides) {
            // SAFETY: the pointer is to a field.
            let made = unsafe { (blas.lt.layout_create)(layout, of, rows as u64, columns as u64, fits("leading dimension", step)?) };
            blas.ok("cublasLtMatrixLayoutCreate", made)?;
            if batch > 1 {
                let (count, stride): (i32, i64) = (fits("batch", batch)?, fits("stride", stride)?);
                // SAFETY: pointers and sizes are those of locals.
                let set = unsafe { (blas.lt.layout_set)(*layout, lt::LAYOUT_BATCH_COUNT, (&raw const count).cast(), 4) };
                blas.ok("cublasLtMatrixLayoutSetAttribute", set)?;
                // SAFETY: as above.
                let set = unsafe { (blas.lt.layout_set)(*layout, lt::LAYOUT_BATCH_STRIDE, (&raw const stride).cast(), 8) };
                blas.ok("cublasLtMatrixLayoutSetAttribute", set)?;
            }
        }
        product.find_algorithms()?;
        if product.algorithms.is_empty() {
            return Err(CudaError::NoAlgorithm { version: self.version(), product: format!("{dtype:?} {shape:?} with scales {scales:?}") });
        }
        Ok(product)
    }
}

/// A product that can be launched.
#[derive(Debug)]
pub struct Product {
    blas: Rc<Inner>,
    desc: Handle,
    layouts: [Handle; 3],
    algorithms: Vec<Heuristic>,
}

impl Product {
    fn set<T>(&self, attribute: c_int, value: &T) -> Result<(), CudaError> {
        // SAFETY: the library copies `size_of::<T>()` bytes.
        let status = unsafe { (self.blas.lt.desc_set)(self.desc, attribute, ptr::from_ref(value).cast(), size_of::<T>()) };
        self.blas.ok("cublasLtMatmulDescSetAttribute", status)
    }

    fn find_algorithms(&mut self) -> Result<(), CudaError> {
        let blas = &self.blas;
        let mut preference = ptr::null_mut();
        // SAFETY: the pointer is to a local.
        blas.ok("cublasLtMatmulPreferenceCreate", unsafe { (blas.lt.preference_create)(&raw mut preference) })?;
        let bytes = WORKSPACE as u64;
        let mut found = [Heuristic::default(); MAX_ALGORITHMS];
        let mut n: c_int = 0;
        let [a, b, d] = self.layouts;
        // SAFETY: all handles are alive; the array has as many entries as is asked for; the preference is destroyed once.
        unsafe {
            (blas.lt.preference_set)(preference, lt::PREF_WORKSPACE, (&raw const bytes).cast(), 8);
            let wanted = fits("algorithms", MAX_ALGORITHMS)?;
            // A status that is not 0 means that nothing was found, which the caller says with the product's sizes.
            (blas.lt.heuristic)(blas.handle, self.desc, a, b, d, d, preference, wanted, found.as_mut_ptr(), &raw mut n);
            (blas.lt.preference_destroy)(preference);
        }
        let n = usize::try_from(n).unwrap_or(0);
        self.algorithms = found[..n].iter().filter(|h| h.state == 0 && h.workspace <= WORKSPACE).copied().collect();
        Ok(())
    }

    /// Algorithms that the library proposes, the one that it thinks best first.
    #[must_use]
    pub fn n_algorithms(&self) -> usize {
        self.algorithms.len()
    }

    /// Puts the product on the stream, by one of the algorithms. `scales` are addresses of the scales of weights and x.
    ///
    /// # Safety
    /// Addresses must be of matrices and scales of the product's sizes, 16-byte aligned, that stay until it has been computed.
    ///
    /// # Errors
    /// What the library says.
    ///
    /// # Panics
    /// When there is no such algorithm.
    pub unsafe fn launch(&self, algorithm: usize, weights: u64, x: u64, out: u64, scales: Option<(u64, u64)>) -> Result<(), CudaError> {
        if let Some((of_weights, of_x)) = scales {
            self.set(lt::DESC_A_SCALE_POINTER, &of_weights)?;
            self.set(lt::DESC_B_SCALE_POINTER, &of_x)?;
        }
        let (one, zero) = (1.0_f32, 0.0_f32);
        let at = |address: u64| ptr::with_exposed_provenance_mut::<c_void>(usize::try_from(address).unwrap_or(usize::MAX));
        let [a, b, d] = self.layouts;
        let blas = &self.blas;
        // SAFETY: handles are alive; alpha and beta are read before the call returns; the rest is the caller's promise.
        let status = unsafe {
            (blas.lt.matmul)(
                blas.handle,
                self.desc,
                (&raw const one).cast(),
                at(weights),
                a,
                at(x),
                b,
                (&raw const zero).cast(),
                at(out),
                d,
                at(out),
                d,
                &raw const self.algorithms[algorithm].algorithm,
                at(blas.workspace.pointer()),
                WORKSPACE,
                blas.gpu.stream(),
            )
        };
        blas.ok("cublasLtMatmul", status)
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: made here and destroyed once; handles that were never made are null and skipped.
        unsafe {
            for layout in self.layouts.iter().filter(|l| !l.is_null()) {
                (self.blas.lt.layout_destroy)(*layout);
            }
            if !self.desc.is_null() {
                (self.blas.lt.desc_destroy)(self.desc);
            }
        }
    }
}
