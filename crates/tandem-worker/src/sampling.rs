//! When the text of a request ends, and how its next token is chosen.

use tandem_engine::Sampling;
use tandem_wire::worker::{FinishReason, SamplingParams};

/// The sampling of one request, with what ends it resolved.
#[derive(Debug)]
pub(crate) struct Rules {
    params: SamplingParams,
    /// Tokens that end the text: the request's own and, unless it ignores it, the model's.
    stops: Vec<u32>,
}

/// A run of new tokens after the rules were applied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// How many were taken, a token that ended the text included: it counts as output and is sent, though it is not
    /// part of the text.
    pub(crate) n_taken: u32,
    pub(crate) finish: Option<FinishReason>,
}

impl Rules {
    pub(crate) fn new(params: SamplingParams, eos: Option<u32>) -> Self {
        let eos = eos.filter(|_| !params.ignore_eos);
        let stops = eos.into_iter().chain(params.stop_token_ids.iter().copied()).collect();
        Self { params, stops }
    }

    /// Tokens to generate at most, at least 1.
    pub(crate) fn max_tokens(&self) -> u32 {
        self.params.max_tokens
    }

    /// How token `output_index` is chosen.
    pub(crate) fn sampling(&self, output_index: u32) -> Sampling {
        let p = &self.params;
        let banned = if output_index < p.min_tokens { self.stops.clone() } else { Vec::new() };
        Sampling { temperature: p.temperature, top_p: p.top_p, top_k: p.top_k, seed: p.seed, output_index, banned }
    }

    /// Applies the rules to `tokens`, which follow `n_output` earlier ones.
    pub(crate) fn accept(&self, n_output: u32, tokens: &[u32]) -> Accepted {
        let mut accepted = Accepted { n_taken: 0, finish: None };
        for token in tokens {
            accepted.n_taken += 1;
            if self.stops.contains(token) {
                accepted.finish = Some(FinishReason::Stop);
                break;
            }
            if n_output + accepted.n_taken >= self.params.max_tokens {
                accepted.finish = Some(FinishReason::Length);
                break;
            }
        }
        accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(max_tokens: u32, min_tokens: u32, ignore_eos: bool) -> Rules {
        let params =
            SamplingParams { max_tokens, min_tokens, ignore_eos, temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, stop_token_ids: vec![7] };
        Rules::new(params, Some(2))
    }

    #[test]
    fn a_text_ends_at_its_length_or_with_a_stop_token() {
        let check = |rules: &Rules, n_output, tokens: &[u32]| {
            let a = rules.accept(n_output, tokens);
            (a.n_taken, a.finish)
        };
        let r = rules(5, 0, false);
        assert_eq!(check(&r, 0, &[1]), (1, None));
        assert_eq!(check(&r, 4, &[1]), (1, Some(FinishReason::Length)));
        assert_eq!(check(&r, 4, &[2]), (1, Some(FinishReason::Stop)), "a stop in the last place is a stop");
        assert_eq!(check(&r, 1, &[1, 7, 1]), (2, Some(FinishReason::Stop)));
        assert_eq!(check(&r, 3, &[1, 1, 1]), (2, Some(FinishReason::Length)));
        assert_eq!(check(&rules(5, 0, true), 0, &[2, 1]), (2, None));
        assert_eq!(check(&rules(5, 0, true), 0, &[2, 7]), (2, Some(FinishReason::Stop)), "the request's own ends are not the model's");
    }

    #[test]
    fn ends_are_banned_before_min_tokens() {
        assert_eq!(rules(9, 3, false).sampling(2).banned, [2, 7]);
        assert_eq!(rules(9, 3, false).sampling(3).banned, [0; 0]);
        assert_eq!(rules(9, 3, true).sampling(0).banned, [7]);
    }
}
