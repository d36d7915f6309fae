//! The secret that coordinator and agents share. It never crosses the network: each side proves to the other that it has it.

use std::fmt;

use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::hex;
use crate::error::LoadError;

/// Fewer characters could be guessed.
const MIN_LENGTH: usize = 16;
/// Block of SHA-256, bytes.
const BLOCK: usize = 64;

/// A shared secret; it never shows.
#[derive(Clone)]
pub struct Token(Vec<u8>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// A token that the user made.
    ///
    /// # Errors
    /// [`LoadError::Spec`] when it is shorter than 16 characters.
    pub fn new(text: &str) -> Result<Self, LoadError> {
        let text = text.trim();
        if text.len() < MIN_LENGTH {
            return Err(LoadError::Spec { field: "token", reason: format!("must have {MIN_LENGTH} characters or more") });
        }
        Ok(Self(text.as_bytes().to_vec()))
    }

    /// A new one, with its text for those who are to share it.
    ///
    /// # Errors
    /// [`LoadError::System`] when the system has no random numbers.
    pub fn random() -> Result<(Self, String), LoadError> {
        let text = nonce()?;
        Ok((Self(text.clone().into_bytes()), text))
    }

    /// Proof of having it, for one `role` and both sides' nonces.
    pub(super) fn proof(&self, role: &str, nonces: [&str; 2]) -> String {
        hex(&hmac(&self.0, format!("{role}\n{}\n{}", nonces[0], nonces[1]).as_bytes()))
    }

    /// Whether `proof` is one; takes as long whatever it is.
    pub(super) fn accepts(&self, proof: &str, role: &str, nonces: [&str; 2]) -> bool {
        self.proof(role, nonces).as_bytes().ct_eq(proof.as_bytes()).into()
    }
}

/// A number used once: 32 random bytes, as hexadecimal digits.
pub(super) fn nonce() -> Result<String, LoadError> {
    let mut bytes = [0; 32];
    let failed =
        |e: rand::rand_core::OsError| LoadError::System { action: "draw random numbers", source: std::io::Error::other(e.to_string()) };
    OsRng.try_fill_bytes(&mut bytes).map_err(failed)?;
    Ok(hex(&bytes))
}

/// HMAC-SHA-256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_that_of_the_standard() {
        // RFC 4231, test cases 2 and 6.
        let known = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(&hmac(b"Jefe", b"what do ya want for nothing?")), known);
        let known = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
        assert_eq!(hex(&hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First")), known);
    }

    #[test]
    fn a_proof_is_for_one_token_one_role_and_one_pair_of_nonces() {
        let (token, text) = Token::random().unwrap();
        let proof = token.proof("agent", ["a", "b"]);
        assert!(Token::new(&text).unwrap().accepts(&proof, "agent", ["a", "b"]));
        for (token, role, nonces) in [
            (Token::random().unwrap().0, "agent", ["a", "b"]),
            (token.clone(), "coordinator", ["a", "b"]),
            (token.clone(), "agent", ["b", "a"]),
        ] {
            assert!(!token.accepts(&proof, role, nonces));
        }
        assert!(!token.accepts("", "agent", ["a", "b"]));
        assert!(Token::new("short").is_err());
        assert!(!format!("{token:?}").contains(&text));
    }
}
