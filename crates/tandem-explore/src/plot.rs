//! A scatter plot for terminals, of braille characters: two by four dots each.

use std::fmt::Write as _;

use crate::frontier::Corner;

/// Bits of a braille character, by column and row.
const DOTS: [[u32; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

/// Draws `cloud` as dots and each of `marks` as a letter over them; x is tokens/s/user, y tokens/s/GPU, both from 0.
#[must_use]
pub fn plot(cloud: &[Corner], marks: &[(Corner, char)], width: usize, height: usize) -> String {
    let all = || cloud.iter().chain(marks.iter().map(|(c, _)| c));
    let (right, top) = all().fold((0.0, 0.0), |(x, y), c| (f64::max(x, c.x), f64::max(y, c.y)));
    if right <= 0.0 || top <= 0.0 || width == 0 || height == 0 {
        return String::new();
    }
    let mut cells = vec![0u32; width * height];
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place on a screen")]
    let place = |value: f64, most: f64, n: usize| ((value / most * n as f64) as usize).min(n - 1);
    for c in cloud {
        let (x, y) = (place(c.x, right, width * 2), height * 4 - 1 - place(c.y, top, height * 4));
        cells[y / 4 * width + x / 2] |= DOTS[x % 2][y % 4];
    }
    let mut chars: Vec<char> =
        cells.iter().map(|&bits| if bits == 0 { ' ' } else { char::from_u32(0x2800 + bits).unwrap_or(' ') }).collect();
    for (c, mark) in marks {
        let (x, y) = (place(c.x, right, width), height - 1 - place(c.y, top, height));
        chars[y * width + x] = *mark;
    }
    let mut out = String::from("tokens/s/GPU\n");
    for (row, line) in chars.chunks(width).enumerate() {
        let label = match row {
            0 => format!("{top:>8.0}"),
            r if r == height - 1 => format!("{:>8}", 0),
            _ => " ".repeat(8),
        };
        let _ = writeln!(out, "{label} |{}", line.iter().collect::<String>().trim_end());
    }
    let _ = writeln!(out, "{} +{}", " ".repeat(8), "-".repeat(width));
    let end = format!("{right:.0} tokens/s/user");
    let _ = writeln!(out, "{}0{end:>width$}", " ".repeat(10), width = width.saturating_sub(1));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_where_they_belong() {
        let text = plot(&[Corner { x: 10.0, y: 1.0 }], &[(Corner { x: 1.0, y: 20.0 }, 'F')], 20, 4);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "      20 |  F");
        let last = lines[4].chars().last().unwrap();
        assert!(('\u{2801}'..='\u{28ff}').contains(&last), "{text}");
        assert_eq!(lines[4].chars().count(), 8 + 2 + 20);
        assert!(lines[6].ends_with("10 tokens/s/user"));
        assert_eq!(plot(&[], &[], 20, 4), "");
    }
}
