package report

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

// check runs in the page and leaves what is wrong with it in an attribute:
// texts that overlap or leave the page or their chart, tables that scroll.
const check = `<script>
const wrong = [];
addEventListener("error", e => wrong.push("error: " + e.message));
function look(view) {
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest("script,title")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const chart = parent.closest("svg");
    const outer = chart ? chart.getBoundingClientRect() : {left: 0, right: innerWidth, top: -1, bottom: 1e9};
    for (const r of range.getClientRects()) {
      if (r.width * r.height == 0) continue;
      if (r.left < outer.left - 1 || r.right > outer.right + 1 || r.top < outer.top - 1 || r.bottom > outer.bottom + 1)
        wrong.push(view + " outside: " + node.data.trim());
      boxes.push({r, node});
    }
  }
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const a = boxes[i].r, b = boxes[j].r;
    if (boxes[i].node !== boxes[j].node && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1)
      wrong.push(view + " overlap: " + boxes[i].node.data.trim() + " | " + boxes[j].node.data.trim());
  }
  for (const table of document.querySelectorAll(".scroll"))
    if (table.scrollWidth > table.clientWidth) wrong.push(view + " scrolls: " + table.closest("section").querySelector("h2").textContent);
  if (document.documentElement.scrollWidth > innerWidth) wrong.push(view + " is wider than the window");
  return boxes.length;
}
const texts = look("log");
for (const radio of document.querySelectorAll(".to-linear")) radio.checked = true;
look("linear");
document.body.setAttribute("data-found", JSON.stringify({width: innerWidth, texts, charts: document.querySelectorAll("svg[role=img]").length, wrong}));
</script></body>`

var found = regexp.MustCompile(`data-found="([^"]*)"`)

// TestPageInABrowser opens pages in Chromium, in windows of several widths.
func TestPageInABrowser(t *testing.T) {
	for name, page := range map[string]struct {
		result tally.Result
		charts int
	}{"sample": {sample(t), 11}, "bare": {bareResult(), 2}, "crowded": {crowdedResult(), 11}} {
		path := filepath.Join(t.TempDir(), name+".html")
		text := string(htmlOf(t, page.result))
		text = strings.Replace(text, "style-src", "script-src 'unsafe-inline'; style-src", 1)
		text = strings.Replace(text, "</body>", check, 1)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, width := range []int{1280, 800, 600} {
			dom := browse(t, path, "--dump-dom", fmt.Sprintf("--window-size=%d,1000", width))
			match := found.FindStringSubmatch(dom)
			if match == nil {
				t.Fatalf("%s: the check did not run:\n%s", name, dom)
			}
			var got struct {
				Width, Texts, Charts int
				Wrong                []string
			}
			if err := json.Unmarshal([]byte(html.UnescapeString(match[1])), &got); err != nil {
				t.Fatal(err)
			}
			if got.Width != width || got.Texts < 70 || got.Charts != page.charts || len(got.Wrong) > 0 {
				t.Errorf("%s: %+v", name, got)
			}
		}
	}
}

// browse runs headless Chromium on a page, and returns what it prints. Nothing
// may be said on the page's console.
func browse(t *testing.T, path string, flags ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	profile, err := os.MkdirTemp("", "loadtest-report-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(profile) }()
	flags = append(flags, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--user-data-dir="+profile, "file://"+path)
	cmd := exec.CommandContext(ctx, "chromium", flags...)
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("chromium: %v\n%s", err, &log)
	}
	if strings.Contains(log.String(), "CONSOLE") {
		t.Errorf("the page's console:\n%s", &log)
	}
	return string(out)
}
