//! Numbers for people: enough digits to compare, not more.

/// Four significant digits or the integer part, thousands apart: `12,345`, `123.4`, `1.234`, `0.01234`.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    // 0.99996 is shown as 1.000, so it is 1.000 that decides about digits.
    let magnitude = (value.abs() * 1.000_05).max(value.abs());
    let decimals = match magnitude {
        _ if value == 0.0 || magnitude >= 1000.0 => 0,
        _ if magnitude >= 100.0 => 1,
        _ if magnitude >= 10.0 => 2,
        _ if magnitude >= 1.0 => 3,
        _ if magnitude >= 0.1 => 4,
        _ if magnitude >= 0.001 => 5,
        _ => return format!("{value:.1e}"),
    };
    let text = format!("{value:.decimals$}");
    // Whole numbers are counts or round settings: no digits after the point.
    let text = if value.fract() == 0.0 { format!("{value:.0}") } else { text };
    grouped(&text)
}

/// A count with thousands apart.
pub(crate) fn count(value: u64) -> String {
    grouped(&value.to_string())
}

/// A relative change with its sign: `+3.2 %`.
pub(crate) fn percent(fraction: f64) -> String {
    let value = fraction * 100.0;
    let decimals = usize::from(value.abs() < 99.95) + usize::from(value.abs() < 0.995);
    // Minus zero would claim a direction.
    let value = if format!("{:.decimals$}", value.abs()).chars().all(|c| c == '0' || c == '.') { 0.0 } else { value };
    if value == 0.0 { "0 %".to_owned() } else { format!("{value:+.decimals$} %").replace('-', "−") }
}

/// Bytes in binary units.
pub(crate) fn bytes(value: u64) -> String {
    let mut scaled = value as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if scaled < 1024.0 {
            return if unit == "B" { format!("{value} B") } else { format!("{scaled:.1} {unit}") };
        }
        scaled /= 1024.0;
    }
    format!("{scaled:.1} TiB")
}

/// Tick labels: as short as the step allows.
pub(crate) fn tick(value: f64, step: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1e6 {
        return format!("{}M", trimmed(value / 1e6, step / 1e6));
    }
    if magnitude >= 1e4 {
        return format!("{}k", trimmed(value / 1e3, step / 1e3));
    }
    trimmed(value, step)
}

fn trimmed(value: f64, step: f64) -> String {
    let is_exact = |decimals: &usize| {
        let scaled = step * 10f64.powi(i32::try_from(*decimals).unwrap_or(0));
        (scaled - scaled.round()).abs() < 1e-6 * scaled.abs()
    };
    let decimals = (0..=6).find(is_exact).unwrap_or(6);
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    if text == "-0" { "0".to_owned() } else { text.replace('-', "−") }
}

fn grouped(text: &str) -> String {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |rest| ("−", rest));
    let (whole, fraction) = digits.split_once('.').map_or((digits, None), |(whole, fraction)| (whole, Some(fraction)));
    let mut out = String::from(sign);
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_matter() {
        let cases = [
            (0.0, "0"),
            (12_345.678, "12,346"),
            (1_234_567.0, "1,234,567"),
            (123.456, "123.5"),
            (12.0, "12"),
            (1.23456, "1.235"),
            (0.999_98, "1.000"),
            (0.012_345, "0.01235"),
            (0.000_012, "1.2e-5"),
            (-1_234.6, "−1,235"),
            (f64::NAN, "–"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
    }

    #[test]
    fn changes_have_a_sign_and_no_false_direction() {
        let cases = [(0.032, "+3.2 %"), (-0.5, "−50.0 %"), (2.0, "+200 %"), (0.001_23, "+0.12 %"), (-0.000_001, "0 %"), (0.0, "0 %")];
        for (fraction, expected) in cases {
            assert_eq!(percent(fraction), expected);
        }
    }

    #[test]
    fn ticks_are_short() {
        let cases = [
            (0.0, 0.5, "0"),
            (1.5, 0.5, "1.5"),
            (7.5, 2.5, "7.5"),
            (20_000.0, 5_000.0, "20k"),
            (1_500_000.0, 500_000.0, "1.5M"),
            (0.25, 0.05, "0.25"),
        ];
        for (value, step, expected) in cases {
            assert_eq!(tick(value, step), expected);
        }
    }

    #[test]
    fn bytes_are_scaled() {
        assert_eq!([bytes(17), bytes(2048), bytes(5 << 30)], ["17 B", "2.0 KiB", "5.0 GiB"]);
    }
}
