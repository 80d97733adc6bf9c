package main

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
)

func benchCommand(s *cli.Streams) *cobra.Command {
	return cli.Group("bench", "Measure on this machine, as ratios to what cannot be avoided", benchVerifyCommand(s))
}

// scene is one thing to measure. Each call of run does it once, on one core.
type scene struct {
	name   string
	checks int     // signature checks that cannot be avoided; the first scene of a list is one such check, the floor
	reach  float64 // the ratio that the design wants at most; 0 for none
	allocs int     // the allocations that the design wants at most; 0 for none
	run    func() error
}

// measurement is what came out for a scene. Ratios are to checks times the floor of the same round, so that a machine that is
// busy or changes its clock disturbs both alike.
type measurement struct {
	Name        string  `json:"name"`
	Median      int64   `json:"median_ns"`
	Checks      int     `json:"checks"`
	Floors      float64 `json:"floors"`     // in units of the floor
	Ratio       float64 `json:"ratio"`      // median over the rounds
	RatioLow    float64 `json:"ratio_low"`  // first quartile
	RatioHigh   float64 `json:"ratio_high"` // third quartile
	Reach       float64 `json:"reach,omitempty"`
	Allocs      float64 `json:"allocs"` // heap allocations
	AllocsReach int     `json:"allocs_reach,omitempty"`
	Bytes       float64 `json:"bytes"` // allocated
}

const (
	batchTime = 4 * time.Millisecond // of one scene in one round
	minRounds = 3                    // whatever the budget
	maxRounds = 1000
)

// measure runs the scenes in turns until the budget is used up, and returns one measurement for each and the number of rounds.
func measure(ctx context.Context, scenes []scene, budget time.Duration) ([]measurement, int, error) {
	rounds := make([][]float64, len(scenes)) // nanoseconds per run
	batch := make([]int, len(scenes))
	for i := range scenes {
		if _, err := timeRuns(&scenes[i], 1); err != nil { // warms up
			return nil, 0, err
		}
		once, err := timeRuns(&scenes[i], 1)
		if err != nil {
			return nil, 0, err
		}
		batch[i] = min(int(float64(batchTime)/max(once, 1))+1, 100)
	}
	end := time.Now().Add(budget)
	n := 0
	for ; n < maxRounds && (n < minRounds || time.Now().Before(end)); n++ {
		for i := range scenes {
			if err := ctx.Err(); err != nil {
				return nil, 0, err
			}
			// Nobody pays for the garbage of another, nor for the caches of the CPU that its collection emptied.
			runtime.GC()
			if _, err := timeRuns(&scenes[i], 1); err != nil {
				return nil, 0, err
			}
			each, err := timeRuns(&scenes[i], batch[i])
			if err != nil {
				return nil, 0, err
			}
			rounds[i] = append(rounds[i], each)
		}
	}
	out := make([]measurement, len(scenes))
	for i := range scenes {
		out[i] = summarize(&scenes[i], rounds[i], rounds[0])
		var err error
		if out[i].Allocs, out[i].Bytes, err = allocations(&scenes[i]); err != nil {
			return nil, 0, err
		}
	}
	return out, n, nil
}

// timeRuns returns the nanoseconds of one run, over n of them.
func timeRuns(s *scene, n int) (float64, error) {
	start := time.Now()
	for range n {
		if err := s.run(); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(start)) / float64(n), nil
}

// summarize compares the rounds of a scene with those of the floor.
func summarize(s *scene, times, floor []float64) measurement {
	ratios := make([]float64, len(times))
	for i := range times {
		ratios[i] = times[i] / floor[i]
	}
	slices.Sort(ratios)
	checks := float64(s.checks)
	m := measurement{
		Name: s.name, Checks: s.checks, Reach: s.reach, AllocsReach: s.allocs, Floors: quantile(ratios, 2),
		Ratio: quantile(ratios, 2) / checks, RatioLow: quantile(ratios, 1) / checks, RatioHigh: quantile(ratios, 3) / checks,
	}
	times = slices.Sorted(slices.Values(times))
	m.Median = int64(quantile(times, 2))
	return m
}

// quantile returns the q-th quartile of sorted values.
func quantile(sorted []float64, q int) float64 { return sorted[(len(sorted)-1)*q/4] }

// allocations counts what one run allocates, over a few of them. Other goroutines of the process are idle meanwhile.
func allocations(s *scene) (count, bytes float64, err error) {
	const runs = 16
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		if err := s.run(); err != nil {
			return 0, 0, err
		}
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / runs, float64(after.TotalAlloc-before.TotalAlloc) / runs, nil
}

// scaling says what more cores add for one scene.
type scaling struct {
	Name  string  `json:"name"`
	Cores int     `json:"cores"`
	One   float64 `json:"one_per_second"`  // one core in its best window
	All   float64 `json:"all_per_second"`  // all cores in theirs
	Best  float64 `json:"best"`            // All over One: what the cores do when nothing else runs on them
	Ratio float64 `json:"ratio"`           // median over pairs of windows
	Reach float64 `json:"reach,omitempty"` // the ratio that the design wants at least, of two cores
}

// scale measures a scene on one core and on all, in turns, until the budget is used up.
func scale(ctx context.Context, s *scene, budget time.Duration) (scaling, error) {
	out := scaling{Name: s.name, Cores: runtime.GOMAXPROCS(0)}
	var ratios []float64
	end := time.Now().Add(budget)
	for n := 0; n < maxRounds && (n < minRounds || time.Now().Before(end)); n++ {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		one, err := rate(s, 1)
		if err != nil {
			return out, err
		}
		all, err := rate(s, out.Cores)
		if err != nil {
			return out, err
		}
		out.One, out.All, ratios = max(out.One, one), max(out.All, all), append(ratios, all/one)
	}
	slices.Sort(ratios)
	out.Best, out.Ratio = out.All/out.One, quantile(ratios, 2)
	return out, nil
}

// rate returns how often per second a scene runs on so many goroutines at once. The window is about a millisecond of a warm
// verification: long beside the start of a goroutine, and short enough to fall between other load.
func rate(s *scene, workers int) (float64, error) {
	const each = 12
	failures := make(chan error, workers)
	start := time.Now()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				if err := s.run(); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	select {
	case err := <-failures:
		return 0, err
	default:
		return float64(workers*each) / elapsed.Seconds(), nil
	}
}
