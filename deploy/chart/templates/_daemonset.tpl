{{- /* A DaemonSet. With: root (the chart's own scope), name, pools (In or NotIn: which nodes), cni (whether the node has one). */ -}}
{{- define "yurt-net.daemonset" -}}
{{- $values := .root.Values -}}
{{- $port := regexFind "[0-9]+$" $values.metricsAddress | int -}}
{{- $host := $values.metricsAddress | trimSuffix (printf ":%d" $port) | trimAll "[]" -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ .name }}
  namespace: kube-system
  labels: {app.kubernetes.io/name: {{ .name }}}
  {{- with $values.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  selector:
    matchLabels: {app.kubernetes.io/name: {{ .name }}}
  updateStrategy: {{- toYaml $values.updateStrategy | nindent 4 }}
  template:
    metadata:
      labels: {app.kubernetes.io/name: {{ .name }}}
    spec:
      serviceAccountName: yurt-net
      priorityClassName: system-node-critical
      hostNetwork: true
      hostPID: true
      dnsPolicy: Default
      terminationGracePeriodSeconds: 10
      {{- with $values.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      tolerations:
        - operator: Exists
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions:
                  - {key: nodepool.openyurt.io/hostnetwork, operator: {{ .pools }}, values: ["true"]}
                  - {key: kubernetes.io/os, operator: In, values: [linux]}
      containers:
        - name: agent
          image: {{ printf "%s:%s" $values.image.repository ($values.image.tag | default .root.Chart.AppVersion) }}
          args:
            - run
            {{- range $values.sources }}
            - {{ printf "--source=%s" . | quote }}
            {{- end }}
            {{- if $values.kubeProxyConfigMap }}
            - --config=/var/lib/kube-proxy/config.conf
            {{- end }}
            {{- if .cni }}
            - --cni=install
            {{- if ne $values.cni.confDir "/etc/cni/net.d" }}
            - {{ printf "--cni-conf-dir=%s" $values.cni.confDir | quote }}
            {{- end }}
            {{- if ne $values.cni.binDir "/opt/cni/bin" }}
            - {{ printf "--cni-bin-dir=%s" $values.cni.binDir | quote }}
            {{- end }}
            {{- end }}
            - --log-format=json
            {{- if ne $values.metricsAddress "127.0.0.1:10249" }}
            - {{ printf "--metrics-bind-address=%s" $values.metricsAddress | quote }}
            {{- end }}
            {{- if ne $values.healthzAddress "0.0.0.0:10256" }}
            - {{ printf "--healthz-bind-address=%s" $values.healthzAddress | quote }}
            {{- end }}
            {{- range $values.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          env:
            - name: NODE_NAME
              valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
          securityContext:
            privileged: true
          resources: {{- toYaml $values.resources | nindent 12 }}
          readinessProbe:
            httpGet: {host: {{ $host | quote }}, port: {{ $port }}, path: /readyz}
            timeoutSeconds: 5
            periodSeconds: 30
            failureThreshold: 3
          livenessProbe:
            httpGet: {host: {{ $host | quote }}, port: {{ $port }}, path: /livez}
            initialDelaySeconds: 30
            timeoutSeconds: 10
            periodSeconds: 60
            failureThreshold: 5
          volumeMounts:
            - {name: state, mountPath: /var/lib/yurt-net}
            - {name: run, mountPath: /run/yurt-net}
            - {name: bpffs, mountPath: /sys/fs/bpf, mountPropagation: HostToContainer}
            - {name: cgroup, mountPath: /sys/fs/cgroup, mountPropagation: HostToContainer}
            - {name: netns, mountPath: /run/netns, mountPropagation: HostToContainer}
            {{- if .cni }}
            - {name: cni-conf, mountPath: {{ $values.cni.confDir | quote }}}
            - {name: cni-bin, mountPath: {{ $values.cni.binDir | quote }}}
            {{- end }}
            {{- if $values.kubeProxyConfigMap }}
            - {name: kube-proxy, mountPath: /var/lib/kube-proxy, readOnly: true}
            {{- end }}
      volumes:
        - {name: state, hostPath: {path: /var/lib/yurt-net, type: DirectoryOrCreate}}
        - {name: run, hostPath: {path: /run/yurt-net, type: DirectoryOrCreate}}
        - {name: bpffs, hostPath: {path: /sys/fs/bpf, type: Directory}}
        - {name: cgroup, hostPath: {path: /sys/fs/cgroup, type: Directory}}
        - {name: netns, hostPath: {path: /run/netns, type: DirectoryOrCreate}}
        {{- if .cni }}
        - {name: cni-conf, hostPath: {path: {{ $values.cni.confDir | quote }}, type: DirectoryOrCreate}}
        - {name: cni-bin, hostPath: {path: {{ $values.cni.binDir | quote }}, type: DirectoryOrCreate}}
        {{- end }}
        {{- if $values.kubeProxyConfigMap }}
        - {name: kube-proxy, configMap: {name: {{ $values.kubeProxyConfigMap }}}}
        {{- end }}
{{- end -}}
