//! No line of a table that measures serving is refused, whatever its cells hold.

use tandem_sim::evaluate::{score, tables};
use tandem_sim::fit::Constants;
use tandem_sim::model::Model;
use tandem_sim::rows::{Kind, Row, parse};

const HEADER: &str = "id,kind,hardware,framework,precision,isl,osl,length_dist,concurrency,num_requests_hint,date,n_ctx,ctx_world_size,\
    ctx_tp,ctx_pp,ctx_ep,ctx_attn_dp,ctx_max_batch_size,ctx_max_num_tokens,ctx_gpu_memory_fraction,n_gen,gen_world_size,gen_tp,gen_pp,\
    gen_ep,gen_attn_dp,gen_max_batch_size,gen_max_num_tokens,gen_gpu_memory_fraction,gen_eplb_num_slots,gen_mtp_size,gpus_total,\
    out_tps_per_gpu,tpot_ms_median,ttft_ms_median,ttft_ms_p99,knob_match";
const LINE: &str = "a,disagg,gb200,dynamo-trt,fp4,1024.0,1024.0,\"uniform[0.8,1.0]\",16,2x concurrency,2026-02-03,1,4.0,4.0,1.0,4.0,True,4,\
    8192,0.5,2,8.0,8.0,1.0,8.0,False,8,8,0.9,0,0,20.0,120.5,7.5,200.0,900.0,exact";

fn cells(line: &str) -> Vec<String> {
    line.replace("\"uniform[0.8,1.0]\"", "uniform[0.8;1.0]")
        .split(',')
        .map(|cell| cell.replace("uniform[0.8;1.0]", "\"uniform[0.8,1.0]\""))
        .collect()
}

fn predicted(rows: &[Row]) {
    let scored = score(&Model::deepseek_r1(Constants::shipped()), rows);
    assert_eq!(scored.len(), rows.len());
    for s in &scored {
        let p = &s.predicted;
        for value in [p.tpot, p.tokens_per_gpu, p.ttft_median, p.ttft_mean, p.ttft_p99] {
            assert!(value.is_finite() && value >= 0.0, "{}: {p:?}", s.row.id);
        }
    }
    assert!(!tables(&scored).is_empty());
}

/// Each cell in turn holds something that it should not.
#[test]
fn a_row_with_an_odd_cell_is_predicted() {
    let odd = ["", "?", "-1", "0", "nan", "inf", "1e300", "7.5", "é", "True"];
    let (names, good) = (cells(HEADER), cells(LINE));
    let mut table = format!("{HEADER}\n{LINE}\n");
    let mut n = 1;
    for i in 0..names.len() {
        // A line of another kind measures no serving, and is counted apart.
        for value in odd.iter().filter(|v| names[i] != "kind" || v.is_empty()) {
            let mut line = good.clone();
            (*value).clone_into(&mut line[i]);
            // A million requests in the system are simulated faithfully, which takes a while.
            if names[i] == "concurrency" && *value == "1e300" {
                assert_eq!(parse(&format!("{HEADER}\n{}\n", line.join(","))).unwrap().0[0].concurrency, 1_000_000);
                continue;
            }
            table += &(line.join(",") + "\n");
            n += 1;
        }
    }
    let (rows, others) = parse(&table).unwrap();
    assert_eq!((rows.len(), others), (n, 0));
    predicted(&rows);
}

#[test]
fn a_table_may_have_its_columns_in_any_order_and_lack_most_of_them() {
    let (mut names, mut values) = (cells(HEADER), cells(LINE));
    let straight = parse(&format!("{HEADER}\n{LINE}\n")).unwrap().0.remove(0);
    names.reverse();
    values.reverse();
    let turned = parse(&format!("{}\n{}\n", names.join(","), values.join(","))).unwrap().0.remove(0);
    assert_eq!(turned, straight);
    let few = parse("hardware,concurrency\nB200,64\nz900,1\n").unwrap();
    assert_eq!((few.0.len(), few.1, few.0[0].kind), (2, 0, Kind::Aggregated));
    assert_eq!(few.0[1].id, "row 2");
    assert!(few.0[0].assumed.iter().any(|a| a.contains("prompt length")), "{:?}", few.0[0].assumed);
    predicted(&few.0);
}

#[test]
fn line_ends_byte_order_mark_and_empty_lines_change_nothing() {
    let plain = parse(&format!("{HEADER}\n{LINE}\n")).unwrap();
    for text in [
        format!("\u{feff}{HEADER}\r\n{LINE}\r\n"),
        format!("{HEADER}\n{LINE}"),
        format!("{HEADER}\n\n{LINE}\n\n,,,\n"),
        format!("{}\n{LINE}\n", HEADER.to_uppercase()),
    ] {
        assert_eq!(parse(&text).unwrap(), plain);
    }
    predicted(&plain.0);
}

#[test]
fn a_row_cut_short_or_too_long_is_predicted() {
    let good = cells(LINE);
    let mut table = HEADER.to_owned() + "\n";
    for n in 2..=good.len() {
        table += &(good[..n].join(",") + "\n");
    }
    table += &(LINE.to_owned() + ",more,cells\n");
    let (rows, others) = parse(&table).unwrap();
    assert_eq!((rows.len(), others), (good.len(), 0));
    predicted(&rows);
}
