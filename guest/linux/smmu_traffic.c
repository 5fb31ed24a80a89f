// SPDX-License-Identifier: GPL-2.0
/*
 * smmu_traffic: lets the arm-smmu-v3 driver invalidate.
 *
 * Binding a device to this driver puts the load on it: threads map one page
 * (or more) for DMA and unmap it again, for a while. No device ever does any
 * DMA. The result is one line in the kernel's log:
 *
 *	RESULT ops=N ms=N ops_per_s=N p50=NS p99=NS max=NS errs=N
 *
 * where the times are those of one unmapping, in ns.
 *
 * Devices: the platform device "ecmdq,smmu-traffic", and any PCI device whose
 * driver_override says "smmu_traffic".
 */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/iommu.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/of_irq.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/vmalloc.h>

static unsigned int threads = 1;
module_param(threads, uint, 0444);
MODULE_PARM_DESC(threads, "number of threads, spread over the CPUs");

static unsigned int msecs = 2000;
module_param(msecs, uint, 0444);
MODULE_PARM_DESC(msecs, "length of the load");

static unsigned int size = SZ_4K;
module_param(size, uint, 0444);
MODULE_PARM_DESC(size, "bytes of each mapping; 0 for a mix of 4K to 2M");

static bool event;
module_param(event, bool, 0444);
MODULE_PARM_DESC(event, "make the SMMU's event queue interrupt at the end");

static const unsigned int mix[] = {
	SZ_4K, SZ_4K, SZ_8K,  SZ_4K, SZ_64K,	  SZ_4K,
	SZ_16K, SZ_4K, SZ_1M, SZ_4K, SZ_8K + SZ_4K, SZ_2M,
};

/* The last so many times of each thread are kept. */
#define TIMES SZ_64K

struct worker {
	struct device *dev;
	struct task_struct *task;
	struct page *page;
	u32 *times;
	u64 ops, errs, ns;
};

static int work(void *arg)
{
	struct worker *w = arg;
	u64 begin = ktime_get_ns();

	while (!kthread_should_stop()) {
		size_t bytes = size ?: mix[w->ops % ARRAY_SIZE(mix)];
		dma_addr_t iova;
		u64 start;

		iova = dma_map_page(w->dev, w->page, 0, bytes, DMA_TO_DEVICE);
		if (dma_mapping_error(w->dev, iova)) {
			w->errs++;
		} else {
			start = ktime_get_ns();
			dma_unmap_page(w->dev, iova, bytes, DMA_TO_DEVICE);
			w->times[w->ops++ % TIMES] =
				min_t(u64, ktime_get_ns() - start, U32_MAX);
		}
		cond_resched();
	}
	w->ns = ktime_get_ns() - begin;
	return 0;
}

static int compare(const void *a, const void *b)
{
	u32 x = *(const u32 *)a, y = *(const u32 *)b;

	return x < y ? -1 : x > y;
}

static int report(struct device *dev, const struct worker *workers)
{
	u64 ops = 0, errs = 0, ns = 1;
	u32 *all, n = 0;
	unsigned int i;

	all = vmalloc(array3_size(threads, TIMES, sizeof(*all)));
	if (!all)
		return -ENOMEM;
	for (i = 0; i < threads; i++) {
		const struct worker *w = &workers[i];
		u32 kept = min_t(u64, w->ops, TIMES);

		memcpy(all + n, w->times, kept * sizeof(*all));
		n += kept;
		ops += w->ops;
		errs += w->errs;
		ns = max(ns, w->ns);
	}
	if (!n)
		all[n++] = 0;
	sort(all, n, sizeof(*all), compare, NULL);
	dev_info(dev, "RESULT ops=%llu ms=%llu ops_per_s=%llu p50=%u p99=%u max=%u errs=%llu\n",
		 ops, div_u64(ns, NSEC_PER_MSEC),
		 div64_u64(ops * NSEC_PER_SEC, ns),
		 all[n / 2], all[n - 1 - n / 100], all[n - 1], errs);
	vfree(all);
	return 0;
}

static int run_workers(struct worker *workers, struct device *dev)
{
	unsigned int order = get_order(size ?: SZ_2M);
	unsigned int i, started;
	int error = 0;

	for (i = 0; i < threads; i++) {
		workers[i].dev = dev;
		workers[i].page = alloc_pages(GFP_KERNEL, order);
		workers[i].times = vmalloc(array_size(TIMES, sizeof(u32)));
		if (!workers[i].page || !workers[i].times)
			error = -ENOMEM;
	}
	for (started = 0; !error && started < threads; started++) {
		struct task_struct *task;

		task = kthread_create(work, &workers[started],
				      "smmu_traffic/%u", started);
		if (IS_ERR(task)) {
			error = PTR_ERR(task);
			break;
		}
		kthread_bind(task, started % num_online_cpus());
		workers[started].task = task;
		wake_up_process(task);
	}
	if (!error)
		msleep_interruptible(msecs);
	for (i = 0; i < started; i++)
		kthread_stop(workers[i].task);
	if (!error)
		error = report(dev, workers);
	for (i = 0; i < threads; i++) {
		if (workers[i].page)
			__free_pages(workers[i].page, order);
		vfree(workers[i].times);
	}
	return error;
}

static int load(struct device *dev)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);
	struct worker *workers;
	int error;

	if (!domain || domain->type != IOMMU_DOMAIN_DMA)
		return dev_err_probe(dev, -ENODEV,
				     "its unmappings don't invalidate at once\n");
	error = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (error)
		return error;
	dma_set_max_seg_size(dev, UINT_MAX);
	workers = kcalloc(threads, sizeof(*workers), GFP_KERNEL);
	if (!workers)
		return -ENOMEM;
	error = run_workers(workers, dev);
	kfree(workers);
	return error;
}

/* The engine cannot reach QEMU's GIC: stands in for the wire of its event queue. */
static void pulse_eventq(struct device *dev)
{
	struct device_node *smmu = of_parse_phandle(dev->of_node, "iommus", 0);
	int irq = of_irq_get_byname(smmu, "eventq");

	of_node_put(smmu);
	if (irq <= 0 || irq_set_irqchip_state(irq, IRQCHIP_STATE_PENDING, true)) {
		dev_err(dev, "no interrupt of the event queue\n");
		return;
	}
	msleep(100);
	synchronize_irq(irq);
}

static int platform_load(struct platform_device *platform)
{
	int error = load(&platform->dev);

	if (!error && event)
		pulse_eventq(&platform->dev);
	return error;
}

static const struct of_device_id compatible[] = {
	{ .compatible = "ecmdq,smmu-traffic" },
	{}
};

static struct platform_driver platform_driver = {
	.probe = platform_load,
	.driver = { .name = "smmu_traffic", .of_match_table = compatible },
};

static int pci_load(struct pci_dev *pci, const struct pci_device_id *id)
{
	return load(&pci->dev);
}

/* without a table of IDs: only for devices whose driver_override names us */
static struct pci_driver pci_driver = {
	.name = "smmu_traffic",
	.probe = pci_load,
};

static int __init smmu_traffic_init(void)
{
	int error;

	if (!threads || size > SZ_2M)
		return -EINVAL;
	error = pci_register_driver(&pci_driver);
	if (error)
		return error;
	error = platform_driver_register(&platform_driver);
	if (error)
		pci_unregister_driver(&pci_driver);
	return error;
}
module_init(smmu_traffic_init);

static void __exit smmu_traffic_exit(void)
{
	platform_driver_unregister(&platform_driver);
	pci_unregister_driver(&pci_driver);
}
module_exit(smmu_traffic_exit);

MODULE_DESCRIPTION("Load for the arm-smmu-v3 driver");
MODULE_LICENSE("GPL");
