//! Whether text that comes in pieces is UTF-8.

/// The beginning of a character whose rest is still to come.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Utf8 {
    pending: [u8; 4],
    length: u8,
}

impl Utf8 {
    /// Takes the next piece. False with the first byte that cannot be.
    pub(super) fn take(&mut self, mut piece: &[u8]) -> bool {
        while self.length > 0 {
            let Some((&byte, rest)) = piece.split_first() else { return true };
            self.pending[usize::from(self.length)] = byte;
            self.length += 1;
            piece = rest;
            match std::str::from_utf8(&self.pending[..usize::from(self.length)]) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => {}
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let rest = &piece[error.valid_up_to()..];
                self.pending[..rest.len()].copy_from_slice(rest);
                // Less than four bytes: more would be a character.
                self.length = u8::try_from(rest.len()).unwrap_or_default();
                true
            }
        }
    }

    /// Whether no character has begun.
    pub(super) const fn is_whole(self) -> bool {
        self.length == 0
    }
}
