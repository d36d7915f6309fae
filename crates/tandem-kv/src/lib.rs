//! Moves the KV cache of one request from a prefill to a decode worker.
//!
//! A transfer is *register* (decode reserves blocks and names them by a ticket), *push*
//! (prefill sends pieces, each layer as it is computed), *commit* (every byte arrived once
//! and unchanged, decode may read) and *acknowledge* (prefill may free). Either side can die
//! at any point: a reservation that is not committed by its deadline expires, a late push is
//! refused, and a lost connection fails exactly the transfers that it carried.
//!
//! What travels is counted in tokens: a piece is some tokens of one layer, packed token by
//! token, so the two sides may use blocks of different sizes. Nobody here knows blocks.
//!
//! Reading order: `layout` (shapes, pieces, coverage), `wire` (frames), `reservations` (what
//! the receiver decides, without IO), `receiver`, `sender` with its `connection`, `tcp`
//! (moving frames with deadlines). Invariants: each registered ticket ends in exactly one of
//! `Commit`, `Failed`, `Aborted`, `Expired` or `release`, and no event of a ticket follows that end;
//! each opened push that its owner does not abort ends in exactly one [`KvSendEvent`].
//! Not here: reading and writing the cache (`tandem-engine`), choosing workers (`tandem-frontend`).

mod layout;
mod wire;

mod reservations;

mod receiver;

mod connection;
mod sender;

mod tcp;

pub use layout::{KvShape, ShapeError};
pub use receiver::{CommitAck, KvEvent, KvReceiver, RegisterError};
pub use sender::{KvPush, KvSendEvent, KvSender};
pub use tcp::KvTimeouts;
pub use wire::MAX_PIECE_BYTES;
